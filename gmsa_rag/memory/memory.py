"""Memory: the soft tokens of one passage, where they come from, and their bytes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from gmsa_rag.checks import check_rate, is_int
from gmsa_rag.errors import InputError, InputTypeError, MemoryFormatError, ShapeError
from gmsa_rag.memory.keys import check_key, digest, encode_fingerprint, memory_key
from gmsa_rag.modeling.group_merging import num_groups

__all__ = ["FORMAT_NAME", "FORMAT_VERSION", "Memory", "memory_key"]

FORMAT_NAME = "gmsa-memory"
FORMAT_VERSION = 1
_TENSOR = "soft_tokens"
# One metadata entry, because safetensors writes several in a random order and equal memories should give equal bytes.
_HEADER = "gmsa"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, eq=False, repr=False)
class Memory:
    """The soft tokens of one passage. Treat them as confidential: they restore the passage nearly word for word.

    Args:
        soft_tokens: The compressor's output, (num_soft_tokens, hidden_size), float32, float16, bfloat16 or float64.
        key: What the memory is found by, 32 hex digits, from memory_key().
        rate: Source tokens per soft token, >= 1.
        num_tokens: Tokens of the passage, >= 0.
        fingerprint: Fingerprint of the compressor that made it.
        borders: Token offsets where each window starts, and the end: (0, 300) for one window, (0, 256, 300) for two,
            (0, 0) for an empty passage. Each but the last is a multiple of the rate.
    Raises:
        ShapeError: If the soft tokens are not 2-D, or not ceil(num_tokens / rate) rows.
        RateError: If the rate is not an int >= 1.
        InputError: If another field has a wrong type or value.
    Example:
        >>> Memory(torch.zeros(2, 4), "0" * 32, 8, 12, "fingerprint", (0, 12)).num_soft_tokens
        2
    """

    soft_tokens: Tensor
    key: str
    rate: int
    num_tokens: int
    fingerprint: str
    borders: tuple[int, ...]

    def __post_init__(self) -> None:
        check_key(self.key)
        check_rate(self.rate)
        encode_fingerprint(self.fingerprint)
        _check_borders(self.borders, self.num_tokens, self.rate)
        _check_tensor(self.soft_tokens, num_groups(self.num_tokens, self.rate))

    @property
    def num_soft_tokens(self) -> int:
        """Rows of soft_tokens: the positions that the memory takes in a prompt."""
        return self.soft_tokens.shape[0]

    def windows(self) -> list[Memory]:
        """Each window as a memory of its own, in order; the soft tokens are shared, and the key is the passage's."""
        windows, at = [], 0
        for start, end in pairwise(self.borders):
            count = num_groups(end - start, self.rate)
            soft = self.soft_tokens[at : at + count]
            at += count
            if count:
                windows.append(replace(self, soft_tokens=soft, num_tokens=end - start, borders=(0, end - start)))
        return windows

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Memory:
        """The same memory with its soft tokens on another device or in another dtype.

        Args:
            device: Where to put them; None leaves them where they are.
            dtype: What to cast them to; None leaves it.
        Returns:
            A memory with the same key, or this one where nothing changes.
        Raises:
            InputTypeError: If the dtype is not one that a memory can have.
        """
        moved = self.soft_tokens.to(device=device, dtype=dtype)
        return self if moved is self.soft_tokens else replace(self, soft_tokens=moved)

    def to_bytes(self) -> bytes:
        """Write the memory as safetensors bytes: equal memories give equal bytes.

        Returns:
            What from_bytes() reads; see docs/memory-format.md.
        Raises:
            InputError: If a soft token is not finite.
        """
        tensor = self.soft_tokens.detach().cpu().contiguous()
        if not _finite(tensor):
            raise InputError("soft_tokens", expected="finite values", got="NaN or infinity", remedy="Compress again.")
        fields: dict[str, object] = {
            "borders": list(self.borders),
            "fingerprint": self.fingerprint,
            "format": FORMAT_NAME,
            "key": self.key,
            "num_tokens": self.num_tokens,
            "rate": self.rate,
            "version": FORMAT_VERSION,
        }
        header = _canonical({**fields, "checksum": _checksum(fields, tensor)})
        return safetensors_torch.save({_TENSOR: tensor}, metadata={_HEADER: header})

    @classmethod
    def from_bytes(cls, data: bytes) -> Memory:
        """Read what to_bytes() wrote, bit for bit, onto the CPU.

        Args:
            data: The bytes of one memory.
        Returns:
            The memory.
        Raises:
            InputTypeError: If data is not bytes.
            MemoryFormatError: If they are of something else, of a newer version, cut, or damaged in any bit.
        """
        if not isinstance(data, bytes):
            raise InputTypeError("memory", expected="bytes", got=type(data).__name__, remedy="Pass to_bytes() output.")
        tensor, fields = _parse(data)
        _check_format(fields)
        if fields.pop("checksum", None) != _checksum(fields, tensor):
            raise _format_error("a matching checksum", "another one: the bytes were damaged")
        if not _finite(tensor):
            raise _format_error("finite soft tokens", "NaN or infinity")
        return _build(tensor, fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Memory):
            return NotImplemented
        mine, theirs = self.soft_tokens, other.soft_tokens
        return _identity(self) == _identity(other) and mine.dtype == theirs.dtype and _equal(mine, theirs)

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        shape, dtype = tuple(self.soft_tokens.shape), str(self.soft_tokens.dtype).removeprefix("torch.")
        return f"Memory(key={self.key!r}, rate={self.rate}, num_tokens={self.num_tokens}, soft_tokens={shape} {dtype})"


def _check_borders(borders: tuple[int, ...], num_tokens: int, rate: int) -> None:
    if not is_int(num_tokens) or num_tokens < 0:
        raise InputError("num_tokens", expected="an int >= 0", got=repr(num_tokens)[:80], remedy="Count the tokens.")
    if not isinstance(borders, tuple) or not all(is_int(border) for border in borders):
        raise InputTypeError("borders", expected="a tuple of ints", got=repr(borders)[:80], remedy="Pass offsets.")
    ascending = borders == (0, 0) or all(start < end for start, end in pairwise(borders))
    covering = len(borders) >= 2 and borders[0] == 0 and borders[-1] == num_tokens
    if not ascending or not covering or any(border % rate for border in borders[:-1]):
        raise InputError(
            "borders",
            expected=f"ascending offsets from 0 to {num_tokens}, each but the last a multiple of {rate}",
            got=repr(borders)[:80],
            remedy=f"Pass (0, {num_tokens}) for a passage of one window.",
        )


def _check_tensor(tensor: Tensor, rows: int) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype not in _DTYPES:
        got = str(tensor.dtype) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InputTypeError(
            "soft_tokens", expected="a float32, float16, bfloat16 or float64 tensor", got=got, remedy="Cast it."
        )
    if tensor.dim() != 2 or tensor.shape[0] != rows or tensor.shape[1] < 1:
        raise ShapeError(
            "soft_tokens",
            expected=f"({rows}, hidden_size)",
            got=str(tuple(tensor.shape)),
            remedy="A memory has ceil(num_tokens / rate) soft tokens.",
        )


def _parse(data: bytes) -> tuple[Tensor, dict[str, object]]:
    try:
        tensors = safetensors_torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        fields = json.loads(header["__metadata__"][_HEADER])
    # The parser has checked the layout; what is left are foreign dtypes, missing names and nonsense in our own entry.
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
        raise _format_error("the bytes of a memory", f"{len(data)} other bytes ({type(error).__name__})") from error
    if set(tensors) != {_TENSOR} or not isinstance(fields, dict):
        raise _format_error(f"one tensor, {_TENSOR!r}", f"{sorted(tensors)}"[:200])
    return tensors[_TENSOR], fields


def _check_format(fields: dict[str, object]) -> None:
    found = fields.get("format"), fields.get("version")
    if found[0] != FORMAT_NAME or not is_int(found[1]):
        raise _format_error(f"format {FORMAT_NAME!r}", repr(found)[:80])
    if found[1] != FORMAT_VERSION:
        raise _format_error(f"version {FORMAT_VERSION}", f"version {found[1]}, written by another gmsa-rag")


def _build(tensor: Tensor, fields: dict[str, object]) -> Memory:
    values = {name: value for name, value in fields.items() if name not in ("format", "version")}
    borders = values.pop("borders", None)
    try:
        return Memory(soft_tokens=tensor, borders=tuple(borders), **values)  # type: ignore[arg-type]
    except (InputError, TypeError) as error:
        raise _format_error("fields that agree with each other", str(error)[:200]) from error


def _checksum(fields: dict[str, object], tensor: Tensor) -> str:
    layout = _canonical({"dtype": str(tensor.dtype), "shape": list(tensor.shape)})
    data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return digest(_canonical(fields).encode(), layout.encode(), data).hex()


def _canonical(fields: dict[str, object]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def _finite(tensor: Tensor) -> bool:
    # A sum is finite only if all its terms are, and quicker to find; it may also overflow.
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


def _identity(memory: Memory) -> tuple[object, ...]:
    return memory.key, memory.rate, memory.num_tokens, memory.fingerprint, memory.borders


def _equal(mine: Tensor, theirs: Tensor) -> bool:
    return torch.equal(mine, theirs.to(mine.device))


def _format_error(expected: str, got: str) -> MemoryFormatError:
    return MemoryFormatError("memory", expected=expected, got=got, remedy="Compress the passage again.")

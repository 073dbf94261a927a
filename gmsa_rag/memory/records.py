"""The rows of the memories table: their SQL, and how a memory becomes one and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gmsa_rag.errors import FingerprintError, InputError, InputTypeError, MalformedHandleError, MemoryFormatError
from gmsa_rag.memory.handles import Handle, make_handle, parse_handle
from gmsa_rag.memory.keys import encode_text
from gmsa_rag.memory.memory import Memory, memory_key

COLUMNS = "key, handle, fingerprint, rate, num_tokens, num_soft_tokens, text, data"
NEXT_USE = "(SELECT coalesce(max(used), 0) + 1 FROM memories WHERE namespace_id = :namespace)"
PUT = f"""
    INSERT INTO memories ({COLUMNS}, namespace_id, used)
    VALUES (:key, :handle, :fingerprint, :rate, :num_tokens, :num_soft_tokens, :text, :data, :namespace, {NEXT_USE})
    ON CONFLICT (namespace_id, key) DO UPDATE SET
        handle = excluded.handle, fingerprint = excluded.fingerprint, rate = excluded.rate,
        num_tokens = excluded.num_tokens, num_soft_tokens = excluded.num_soft_tokens,
        text = coalesce(excluded.text, text), data = excluded.data, used = excluded.used"""
TOUCH = f"UPDATE memories SET used = {NEXT_USE} WHERE namespace_id = :namespace AND key = :key"

Record = tuple[str, str, str, int, int, int, "bytes | None", "bytes | None"]


def encode(memory: object, text: str | None, secret: bytes, keep_text: bool) -> dict[str, object]:
    """The values of PUT for a memory.

    Args:
        memory: What to store.
        text: Its passage; None stores none and checks nothing.
        secret: Secret of the namespace.
        keep_text: Whether to store the text, once it is checked.
    Returns:
        All values but the namespace.
    Raises:
        InputError: If it is no memory, its values are not finite, or its key is not that of the text.
    """
    if not isinstance(memory, Memory):
        got = type(memory).__name__
        raise InputTypeError("memory", expected="a Memory", got=got, remedy="Pass what compress() gave.")
    if text is not None and memory.key != memory_key(memory.fingerprint, memory.rate, text):
        got = f"key {memory.key}"
        raise InputError("text", expected="the one whose key the memory has", got=got, remedy="Check the order.")
    return {
        "key": memory.key,
        "handle": _handle_digest(secret, memory.key),
        "fingerprint": memory.fingerprint,
        "rate": memory.rate,
        "num_tokens": memory.num_tokens,
        "num_soft_tokens": memory.num_soft_tokens,
        "text": encode_text(text) if text is not None and keep_text else None,
        "data": memory.to_bytes(),
    }


def size_of(row: Mapping[str, object]) -> int:
    """Bytes of the memory and the text that encode() gave."""
    return sum(len(value) for value in (row["data"], row["text"]) if isinstance(value, bytes))


def decode(row: Record) -> Memory:
    """The memory of a row; MemoryFormatError where its bytes are damaged or disagree with its columns."""
    key, _, fingerprint, rate, num_tokens, num_soft_tokens, _, data = row
    memory = Memory.from_bytes(data if isinstance(data, bytes) else b"")
    found = memory.key, memory.fingerprint, memory.rate, memory.num_tokens, memory.num_soft_tokens
    if found != (key, fingerprint, rate, num_tokens, num_soft_tokens):
        remedy = "Compress the passage again."
        raise MemoryFormatError("row", expected="columns as the bytes", got="others", remedy=remedy)
    return memory


def problem_of(row: Record, secret: bytes) -> str | None:
    """What is wrong with a row, in words; None if nothing is."""
    key, handle, fingerprint, rate, _, _, text, data = row
    try:
        if data is not None:
            decode(row)
        if handle != _handle_digest(secret, key):
            return f"memory {key}: a handle of another key"
        if text is not None and key != memory_key(fingerprint, rate, bytes(text).decode()):
            return f"memory {key}: a text of another key"
    except (MemoryFormatError, InputError, UnicodeDecodeError, TypeError) as error:
        return f"memory {key}: {getattr(error, 'got', 'a damaged text')}"
    return None


def _handle_digest(secret: bytes, key: str) -> str:
    return parse_handle(make_handle(secret, key, 0)).digest


def passages_of(memories: Sequence[Memory], texts: Sequence[str] | None) -> Sequence[str | None]:
    """The passage of each memory, None where texts are not given; InputError if the counts differ."""
    if texts is None:
        return [None] * len(memories)
    if len(texts) != len(memories):
        got = f"{len(texts)} texts for {len(memories)} memories"
        raise InputError("texts", expected="one for each memory", got=got, remedy="Pass them in the same order.")
    return texts


def check_use(handle: Handle, memory: Memory, fingerprint: str | None) -> Memory:
    """The memory itself; an error if the handle was altered, or another compressor made the memory."""
    if handle.num_soft_tokens != memory.num_soft_tokens:
        expected = f"{memory.num_soft_tokens} soft tokens"
        raise MalformedHandleError("handle", expected=expected, got=str(handle), remedy="Pass handles on unchanged.")
    if fingerprint is not None and memory.fingerprint != fingerprint:
        raise FingerprintError(
            f"memory {memory.key}",
            expected=f"fingerprint {fingerprint}",
            got=memory.fingerprint,
            remedy="Compress the passage again with the checkpoint in use.",
        )
    return memory

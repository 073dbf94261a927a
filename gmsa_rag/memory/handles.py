"""Handles: `[[gmsa:<32 hex>:<num_soft_tokens>]]`, the text that stands for a memory on its way through a chain.

A look-alike is a piece of text that is, or was before somebody cut or altered it, a handle:

    a head   `[[gmsa:`, in any case and with whitespace inside, or `gmsa:` before 16 to 32 hex digits and a colon
    a tail   16 to 32 hex digits, a colon, up to 10 digits and `]]`, in any case and with whitespace inside

A tail with fewer than 16 hex digits is taken for ordinary text, since `x[a[10:20]]` is common in code, and so is a
piece from the middle of the hex digits. neutralise() puts one `-` into each head (`[[gmsa-:`) and tail (`:100-]]`):
visible, ASCII, kept by every encoding and whitespace clean-up, and no look-alike any more.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gmsa_rag.checks import is_int
from gmsa_rag.errors import HandleNotAllowedError, InputError, InputTypeError, MalformedHandleError, UnknownMemoryError
from gmsa_rag.memory.keys import check_key

if TYPE_CHECKING:
    from gmsa_rag.memory.memory import Memory

_HANDLE = re.compile(r"\[\[gmsa:([0-9a-f]{32}):(0|[1-9][0-9]{0,9})\]\]")
_NAME = r"[Gg]\s*[Mm]\s*[Ss]\s*[Aa]"
_HEX = r"[0-9A-Fa-f]{16,32}"
_HEAD = re.compile(rf"\[\s*\[\s*{_NAME}(?=\s*:)|{_NAME}(?=\s*:\s*{_HEX}\s*:)")
_TAIL = re.compile(rf"(?<![0-9A-Fa-f]){_HEX}\s*:\s*[0-9]{{1,10}}(?=\s*\]\s*\])")
_MAX_SOFT_TOKENS = 10**10 - 1

OnMissing = Literal["error", "text", "drop"]


@dataclass(frozen=True)
class Handle:
    """A whole handle found in a text; str() gives its text back.

    Attributes:
        digest: The 32 hex digits.
        num_soft_tokens: Soft tokens of the memory it stands for, >= 0.
    """

    digest: str
    num_soft_tokens: int

    def __str__(self) -> str:
        return f"[[gmsa:{self.digest}:{self.num_soft_tokens}]]"


def make_handle(secret: bytes, key: str, num_soft_tokens: int) -> str:
    """Issue the handle of a memory; it cannot be made without the secret.

    Args:
        secret: Secret of the store's namespace, at least 16 bytes.
        key: Key of the memory, 32 hex digits.
        num_soft_tokens: Its soft tokens, 0 to 10 ** 10 - 1.
    Returns:
        The handle; its hex digits are the first 128 bits of HMAC-SHA-256(secret, key).
    Raises:
        InputError: If an argument has a wrong type or value.
    Example:
        >>> make_handle(b"a secret of 16 b", "0" * 32, 100)
        '[[gmsa:930a0f4289af11e83c1f223a0649ac05:100]]'
    """
    check_secret(secret)
    if not is_int(num_soft_tokens) or not 0 <= num_soft_tokens <= _MAX_SOFT_TOKENS:
        raise InputError(
            "num_soft_tokens", expected="an int >= 0", got=repr(num_soft_tokens)[:80], remedy="Take the memory's."
        )
    digest = hmac.new(secret, check_key(key).encode(), hashlib.sha256).hexdigest()[:32]
    return str(Handle(digest, num_soft_tokens))


def store_identity(secret: bytes, namespace: str) -> str:
    """32 hex digits, the same wherever secret and namespace are; they give neither the secret nor a path away."""
    # The space keeps it apart from the keys that handles are made of.
    return hmac.new(check_secret(secret), f"namespace {namespace}".encode(), hashlib.sha256).hexdigest()[:32]


def check_secret(secret: bytes) -> bytes:
    """The secret itself; InputError unless it is at least 16 bytes."""
    if not isinstance(secret, bytes):
        raise InputTypeError("secret", expected="bytes", got=type(secret).__name__, remedy="Use secrets.token_bytes().")
    if len(secret) < 16:
        remedy = "Use secrets.token_bytes(32)."
        raise InputError("secret", expected="at least 16 bytes", got=f"{len(secret)} bytes", remedy=remedy)
    return secret


def parse_handle(text: str) -> Handle:
    """Read a text that is one whole handle and nothing else.

    Args:
        text: The handle.
    Returns:
        Its parts.
    Raises:
        MalformedHandleError: If it is anything else.
    """
    match = _HANDLE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise _malformed(repr(text))
    return Handle(match[1], int(match[2]))


def find_handles(text: str) -> list[str]:
    """List the whole handles in a text, in order, repeats included; cut ones are passed over.

    Args:
        text: Any text.
    Returns:
        The handles.
    """
    return [match[0] for match in _HANDLE.finditer(text)]


def neutralise(text: str) -> str:
    """Turn every look-alike in untrusted text into plain text that is neither a handle nor a cut one.

    Two neutralised texts joined to each other hold no whole handle either.

    Args:
        text: A passage or user input.
    Returns:
        The text with `[[gmsa:` as `[[gmsa-:` and `:100]]` as `:100-]]`; all else is unchanged, and doing it again
        changes nothing.
    Example:
        >>> neutralise("see [[gmsa:0123456789abcdef0123456789abcdef:100]] and [[wiki]]")
        'see [[gmsa-:0123456789abcdef0123456789abcdef:100-]] and [[wiki]]'
    """
    return _TAIL.sub(r"\g<0>-", _HEAD.sub(r"\g<0>-", text))


def split_handles(text: str) -> list[str | Handle]:
    """Cut a text into plain text and handles.

    Args:
        text: A prompt, its untrusted parts neutralised.
    Returns:
        The parts in order; no part is an empty string, and together they are the text.
    Raises:
        MalformedHandleError: If what is between the handles has a look-alike (the module says which cuts are seen).
    """
    parts: list[str | Handle] = []
    end = 0
    for match in _HANDLE.finditer(text):
        parts += [_plain(text[end : match.start()]), Handle(match[1], int(match[2]))]
        end = match.end()
    parts.append(_plain(text[end:]))
    return [part for part in parts if part != ""]


def resolve_parts(
    text: str,
    resolve: Callable[[str], Memory],
    *,
    on_missing: OnMissing = "error",
    text_of: Callable[[str], str | None] | None = None,
    allowed: Collection[str] | None = None,
) -> list[str | Memory]:
    """Turn a text with handles into prompt parts.

    Args:
        text: A prompt, its untrusted parts neutralised.
        resolve: Gives the memory of a handle, e.g. MemoryStore.resolve.
        on_missing: For a handle whose memory is gone: "error" raises, "text" puts the passage's own text in its
            place, "drop" leaves it out.
        text_of: Gives the passage's text of a handle or None, e.g. MemoryStore.text.
        allowed: The handles that may be used; None allows all.
    Returns:
        Texts and memories in order, as GMSA.generate takes them; neighbouring texts are one, none is empty.
    Raises:
        MalformedHandleError: If a handle was cut or altered.
        HandleNotAllowedError: If a handle is not among the allowed ones.
        UnknownMemoryError: If a memory is gone and on_missing is "error", or "text" and there is no text.
        InputError: If on_missing is something else.
    """
    if on_missing not in ("error", "text", "drop"):
        raise InputError("on_missing", expected='"error", "text" or "drop"', got=repr(on_missing), remedy="Pass one.")
    parts: list[str | Memory] = []
    for part in split_handles(text):
        if isinstance(part, Handle):
            _check_allowed(str(part), allowed)
            _append(parts, _resolve(str(part), resolve, on_missing, text_of))
        else:
            _append(parts, part)
    return parts


def _plain(text: str) -> str:
    match = _HEAD.search(text) or _TAIL.search(text)
    if match:
        raise _malformed(repr(text[match.start() : match.start() + 60]))
    return text


def _check_allowed(handle: str, allowed: Collection[str] | None) -> None:
    if allowed is not None and handle not in allowed:
        raise HandleNotAllowedError(
            "handle",
            expected=f"one of the {len(allowed)} allowed handles",
            got=handle,
            remedy="Neutralise untrusted text, or add the handle to the allow-list.",
        )


def _resolve(
    handle: str,
    resolve: Callable[[str], Memory],
    on_missing: OnMissing,
    text_of: Callable[[str], str | None] | None,
) -> str | Memory:
    try:
        return resolve(handle)
    except UnknownMemoryError:
        text = text_of(handle) if on_missing == "text" and text_of else None
        if on_missing == "error" or (on_missing == "text" and text is None):
            raise
        return neutralise(text or "")


def _append(parts: list[str | Memory], part: str | Memory) -> None:
    if part == "":
        return
    if isinstance(part, str) and parts and isinstance(parts[-1], str):
        # A dropped handle must not bring two halves of another one together.
        parts[-1] = neutralise(parts[-1] + part)
    else:
        parts.append(part)


def _malformed(got: str) -> MalformedHandleError:
    return MalformedHandleError(
        "handle",
        expected="[[gmsa:<32 hex>:<num_soft_tokens>]]",
        got=got[:80],
        remedy="Pass handles on unchanged, and neutralise() text that only looks like one.",
    )

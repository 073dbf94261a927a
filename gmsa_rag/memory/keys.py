"""The key of a memory: a digest of what it was made from."""

from __future__ import annotations

import hashlib
import re

from gmsa_rag.checks import check_rate, check_text
from gmsa_rag.errors import InputError

KEY = re.compile(r"[0-9a-f]{32}")


def memory_key(fingerprint: str, rate: int, text: str) -> str:
    """Name the memory of a text, the same on every machine and for every dtype.

    Args:
        fingerprint: Fingerprint of the compressor, not empty.
        rate: Source tokens per soft token, >= 1.
        text: The passage, as it is given to the compressor.
    Returns:
        The first 128 bits of a SHA-256 over the three, each with its length before it, as 32 hex digits.
    Raises:
        RateError: If the rate is not an int >= 1.
        InputError: If a text is of another type, the fingerprint is empty, or one holds lone surrogates.
    Example:
        >>> memory_key("f" * 64, 8, "Rome is in Italy.")
        '2732a7f4d8ddd9a3ca5ee198131014e6'
    """
    return digest(encode_fingerprint(fingerprint), str(check_rate(rate)).encode(), encode_text(text)).hex()[:32]


def digest(*fields: bytes) -> bytes:
    """SHA-256 over the fields, each with its length before it (8 bytes, big-endian)."""
    hasher = hashlib.sha256()
    for field in fields:
        hasher.update(len(field).to_bytes(8, "big"))
        hasher.update(field)
    return hasher.digest()


def encode_text(text: str, name: str = "text") -> bytes:
    """The UTF-8 bytes of a text; InputError where it has none."""
    return check_text(text, name).encode()


def encode_fingerprint(fingerprint: str) -> bytes:
    """The bytes of a fingerprint, which is never empty."""
    encoded = encode_text(fingerprint, "fingerprint")
    if not encoded:
        raise InputError("fingerprint", expected="a text", got="an empty one", remedy="Take it from the checkpoint.")
    return encoded


def check_key(key: str) -> str:
    """The key itself; InputError unless it is 32 lower-case hex digits."""
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise InputError("key", expected="32 lower-case hex digits", got=repr(key)[:80], remedy="Use memory_key().")
    return key

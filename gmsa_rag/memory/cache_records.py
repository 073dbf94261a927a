"""What GMSAMemoryCache writes into a byte store: names and values, and how they are checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gmsa_rag.errors import InputError, MemoryFormatError
from gmsa_rag.memory.handles import make_handle, parse_handle
from gmsa_rag.memory.keys import check_key, digest, encode_text
from gmsa_rag.memory.memory import Memory, memory_key

# Slashes and lower-case letters only: stores of files take no other punctuation.
PREFIX = "gmsa/v1/"
MADE_BY = f"{PREFIX}made-by/"
SECRET = f"{PREFIX}secret"
_MEMORY = re.compile(re.escape(PREFIX) + r"([0-9a-f]{32})")
_SOURCE = re.compile(re.escape(PREFIX) + r"source/([0-9a-f]{32})")


@dataclass(frozen=True)
class MadeBy:
    """Where a memory comes from, whatever its passage.

    Attributes:
        fingerprint: Fingerprint of the compressor.
        rate: Source tokens per soft token, >= 1.
    """

    fingerprint: str
    rate: int

    @property
    def name(self) -> str:
        """Its name in the byte store."""
        return MADE_BY + digest(self.fingerprint.encode(), str(self.rate).encode()).hex()[:32]


@dataclass(frozen=True)
class Source:
    """What a handle stands for.

    Attributes:
        fingerprint: Fingerprint of the compressor.
        rate: Source tokens per soft token, >= 1.
        key: Key of the memory.
        text: The passage; None where texts are not kept.
    """

    fingerprint: str
    rate: int
    key: str
    text: str | None


def memory_name(key: str) -> str:
    """Name of a memory in a byte store: `gmsa/v1/` and its key."""
    return PREFIX + key


def key_of(name: str) -> str | None:
    """The key, if the name is that of a memory."""
    match = _MEMORY.fullmatch(name)
    return match[1] if match else None


def source_name(handle_digest: str) -> str:
    """Name of a source in a byte store: `gmsa/v1/source/` and the digest of the handle."""
    return f"{PREFIX}source/{handle_digest}"


def digest_of(name: str) -> str | None:
    """The handle's digest, if the name is that of a source."""
    match = _SOURCE.fullmatch(name)
    return match[1] if match else None


def handle_digest(secret: bytes, key: str) -> str:
    """The hex digits of a key's handle."""
    return parse_handle(make_handle(secret, key, 0)).digest


def to_json(record: MadeBy | Source) -> bytes:
    """A record as bytes: UTF-8 JSON, the same for equal records."""
    return json.dumps(asdict(record), ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def read_memory(key: str, data: bytes) -> Memory:
    """The memory of a name; MemoryFormatError where its bytes are damaged, or of another one."""
    memory = Memory.from_bytes(data)
    if memory.key != key:
        raise _format_error("memory", f"key {key}", f"key {memory.key}")
    return memory


def read_made_by(name: str, data: bytes) -> MadeBy:
    """The record of a name; MemoryFormatError where its bytes are damaged, or of another one."""
    try:
        record = MadeBy(**_fields(data))
        if record.name == name:
            return record
        got = "one of another name"
    except (ValueError, TypeError, AttributeError) as error:
        got = str(error)[:200]
    raise _format_error("origin", "a fingerprint and a rate", got)


def read_source(handle_hex: str, data: bytes, secret: bytes) -> Source:
    """The source of a name; MemoryFormatError where it is damaged, or this secret never gave it that name."""
    try:
        source = Source(**_fields(data))
        if handle_digest(secret, check_key(source.key)) != handle_hex:
            got = "one of another handle"
        elif source.text is not None and source.key != memory_key(source.fingerprint, source.rate, source.text):
            got = "a text of another key"
        else:
            return source
    except (ValueError, TypeError) as error:
        got = str(error)[:200]
    raise _format_error("source", "a key and its text", got)


def digest_of_handle_or_key(handle_or_key: str, secret: bytes) -> str:
    """The handle's digest of a whole handle or of a key; MalformedHandleError if it is neither."""
    try:
        return handle_digest(secret, check_key(handle_or_key))
    except InputError:
        return parse_handle(handle_or_key).digest


def _fields(data: bytes) -> Mapping[str, Any]:
    fields = json.loads(data)
    if not isinstance(fields, dict):
        raise ValueError("no JSON object")
    for name in ("fingerprint", "key", "text"):
        if fields.get(name) is not None:
            encode_text(fields[name], name)
    return fields


def _format_error(what: str, expected: str, got: str) -> MemoryFormatError:
    return MemoryFormatError(what, expected=expected, got=got, remedy="Compress the passage again.")

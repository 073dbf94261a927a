"""GMSAMemoryCache: memories in any byte store, such as Redis, files or an SQL table."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from gmsa_rag.errors import (
    CorruptStoreError,
    MemoryFormatError,
    StoreError,
    UnknownMemoryError,
)
from gmsa_rag.memory.byte_store import ByteStore, check_byte_store, check_value
from gmsa_rag.memory.cache_records import (
    MADE_BY,
    PREFIX,
    SECRET,
    MadeBy,
    Source,
    digest_of,
    digest_of_handle_or_key,
    handle_digest,
    key_of,
    memory_name,
    read_made_by,
    read_memory,
    read_source,
    source_name,
    to_json,
)
from gmsa_rag.memory.handles import check_secret, make_handle, parse_handle, store_identity
from gmsa_rag.memory.keys import KEY, check_key, encode_text
from gmsa_rag.memory.memory import Memory, memory_key
from gmsa_rag.memory.records import check_use, encode, passages_of
from gmsa_rag.memory.store import MemoryStore

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
CHUNK = 64  # memories in one request: some tens of megabytes


class GMSAMemoryCache(MemoryStore):
    """A MemoryStore whose records lie in a byte store instead of an SQLite file: give it wherever a store goes.

    Hosts that share the byte store share the memories, and issue and resolve the same handles. Nothing is kept in
    this process, so what one of them deletes is gone for all. What the byte store evicts or damages is computed again
    when its passage is compressed again; a handle resolved before that is a typed error. Its own errors, such as those
    of a lost connection, come through as they are. Soft tokens and texts lie there readable: protect it as the texts.

    A byte store, or its prefix, is for one secret. There is no lock over a byte store: where several processes may open
    an empty one at the same moment, configure the secret, or they may make two; the next write then says so.

    Args:
        store: A LangChain `ByteStore`, or anything with its mget, mset, mdelete and yield_keys; values are bytes.
        secret: What handles are made with, at least 16 bytes; it is not written. None: random, made on the first use
            of the byte store and kept in it, where who can read it can make handles.
        keep_text: Whether to keep the passages' own texts.
    Raises:
        InputTypeError: If it is no byte store, or the secret is not bytes.
        StoreError: If the byte store's own secret is another one, or it gives something else than bytes.
        CorruptStoreError: If its secret is damaged.
    Example:
        >>> import torch
        >>> from langchain_core.stores import InMemoryByteStore
        >>> cache = GMSAMemoryCache(InMemoryByteStore())
        >>> key = memory_key("fingerprint", 8, "Rome")
        >>> cache.put(Memory(torch.zeros(1, 4), key, 8, 2, "fingerprint", (0, 2)), "Rome")
        >>> cache.text(key), len(cache)
        ('Rome', 1)
    """

    def __init__(self, store: ByteStore, *, secret: bytes | None = None, keep_text: bool = True) -> None:
        # No super().__init__(), which opens a file: every public method below works on the byte store instead.
        self.namespace, self.max_memories, self.keep_text = "default", None, keep_text
        self._bytes = check_byte_store(store)
        self._configured = secret is not None
        self._secret = self._enter(secret)

    @property
    def path(self) -> str:
        """What the memories lie in, in words."""
        return f"in a byte store of type {type(self._bytes).__name__}"

    @property
    def identity(self) -> str:
        """What a cache tells stores apart by: the same for all byte stores of this secret, and no secret itself."""
        return store_identity(self._secret, self.namespace)

    @property
    def is_current(self) -> bool:
        """True: whoever made the byte store closes it."""
        return True

    def get_many(self, keys: Sequence[str]) -> list[Memory | None]:
        """Read memories by key.

        Args:
            keys: Keys, in any order, repeats allowed.
        Returns:
            One memory per key, on the CPU; None where there is none, and where its record is damaged or incomplete,
            which is logged: the caller computes it again, and put_many() repairs the record.
        Raises:
            InputError: If a key is not 32 hex digits.
        """
        found: dict[str, Memory | None] = {}
        for piece in _chunks(list(dict.fromkeys(check_key(key) for key in keys))):
            values = self._get([name for key in piece for name in self._names_of(key)])
            found |= {key: self._sound(key, *values[2 * at : 2 * at + 2]) for at, key in enumerate(piece)}
        return [found[key] for key in keys]

    def put_many(self, memories: Sequence[Memory], texts: Sequence[str] | None = None) -> None:
        """Write memories; a text that is there already is kept where none is given.

        How much of it is written after an error is the byte store's business; what is written is sound.

        Args:
            memories: What to write.
            texts: The passage of each memory, or None.
        Raises:
            InputError: If the counts differ, a soft token is not finite, or a key is not that of its text.
            StoreError: If another process has meanwhile given the byte store another secret.
        """
        passages = passages_of(memories, texts)
        rows = [
            encode(memory, text, self._secret, self.keep_text) for memory, text in zip(memories, passages, strict=True)
        ]
        if rows and not self._configured:
            self._check_secret()
        for piece in _chunks(list(zip(memories, passages, rows, strict=True))):
            self._put([(memory, text if self.keep_text else None, row["data"]) for memory, text, row in piece])

    def delete(self, keys: Iterable[str]) -> int:
        """Delete memories and their texts from the byte store, for all who share it.

        Args:
            keys: Keys; those that are not there are passed over.
        Returns:
            Records deleted, >= 0.
        Raises:
            InputError: If a key is not 32 hex digits.
        """
        deleted = 0
        for piece in _chunks(list(dict.fromkeys(check_key(key) for key in keys))):
            names = [name for key in piece for name in self._names_of(key)]
            values = [value is not None for value in self._get(names)]
            deleted += sum(map(max, values[::2], values[1::2]))
            self._bytes.mdelete(names)
        return deleted

    def forget(self, text: str) -> int:
        """Delete the memories of a text at every rate and fingerprint, and the text, for all who share the byte store.

        Args:
            text: The passage as it was given to the compressor.
        Returns:
            Records deleted, >= 0.
        Raises:
            InputError: If the text holds lone surrogates.
            CorruptStoreError: If a record of what the memories were made by is damaged: nothing is deleted.
        """
        return self.forget_many([text])

    def forget_many(self, texts: Iterable[str]) -> int:
        """Forget several texts at once, as forget() does."""
        wanted = list(texts)
        for text in wanted:
            encode_text(text)
        made_by = self._made_by()
        return self.delete([memory_key(by.fingerprint, by.rate, text) for text in wanted for by in made_by])

    def keys(self) -> list[str]:
        """The keys of all memories, sorted; a byte store does not know which came first."""
        return sorted(key for name in self._names(PREFIX) if (key := key_of(name)))

    def namespaces(self) -> list[str]:
        """The one namespace there is; a prefix of the byte store makes others."""
        return [self.namespace]

    def handle(self, memory: Memory) -> str:
        """Issue the handle of a memory, stored or not.

        Args:
            memory: Any memory.
        Returns:
            `[[gmsa:<32 hex>:<num_soft_tokens>]]`, the same for all who share the byte store.
        """
        return make_handle(self._secret, memory.key, memory.num_soft_tokens)

    def resolve(self, handle: str, *, fingerprint: str | None = None) -> Memory:
        """Read the memory that a handle stands for.

        Args:
            handle: A whole handle.
            fingerprint: The only compressor whose memories the caller can use; None takes any.
        Returns:
            The memory, on the CPU.
        Raises:
            MalformedHandleError: If the handle was cut or altered.
            UnknownMemoryError: If it was never issued here, or the memory is gone.
            FingerprintError: If the memory is of another compressor.
            CorruptStoreError: If the record is damaged.
        """
        parsed = parse_handle(handle)
        source = self._source(parsed.digest)
        data = self._get([memory_name(source.key)])[0] if source else None
        if source is None or data is None:
            raise UnknownMemoryError(
                "handle",
                expected="one that this cache issued and still holds the memory of",
                got=handle + (", whose memory is gone" if source else ", which it never issued, or has lost"),
                remedy="Use the cache that compressed the passage, or compress it again.",
            )
        try:
            memory = read_memory(source.key, data)
        except MemoryFormatError as error:
            raise self._corrupt(f"memory {source.key}: {error.got}") from error
        return check_use(parsed, memory, fingerprint)

    def text(self, handle_or_key: str) -> str | None:
        """Read the passage of a handle or key.

        Args:
            handle_or_key: A whole handle, or 32 hex digits.
        Returns:
            The text; None if the record is unknown or has none.
        Raises:
            MalformedHandleError: If it is neither a whole handle nor a key.
            CorruptStoreError: If the text is damaged.
        """
        source = self._source(digest_of_handle_or_key(handle_or_key, self._secret))
        return source.text if source else None

    def check(self) -> None:
        """Verify every record: that it decodes, and is the one of its name. Writes nothing.

        Raises:
            CorruptStoreError: If something is damaged, or was written with another secret; it names the records.
        """
        problems = []
        for names in _chunks(sorted(self._names(PREFIX))):
            for name, data in zip(names, self._get(names), strict=True):
                problem = None if data is None else self._problem(name, data)
                problems += [f"{name}: {problem}"] if problem else []
        if problems:
            raise self._corrupt(f"{len(problems)} damaged records: " + "; ".join(problems))

    def close(self) -> None:
        """Do nothing: whoever made the byte store closes it."""

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bool(KEY.fullmatch(key)) and self.get_many([key]) != [None]

    def _put(self, records: list[tuple[Memory, str | None, object]]) -> None:
        """Write some records, each after what it needs to be forgotten by."""
        made_by = {record.name: to_json(record) for record in (MadeBy(m.fingerprint, m.rate) for m, _, _ in records)}
        kept = self._texts([memory.key for memory, text, _ in records if text is None])
        sources, memories = {}, {}
        for memory, text, data in records:
            text = kept.get(memory.key) if text is None else text
            source = Source(memory.fingerprint, memory.rate, memory.key, text)
            sources[source_name(self._digest(memory.key))] = to_json(source)
            memories[memory_name(memory.key)] = data
        pairs = [*made_by.items(), *sources.items(), *memories.items()]
        self._bytes.mset([(name, data) for name, data in pairs if isinstance(data, bytes)])

    def _texts(self, keys: list[str]) -> dict[str, str]:
        """The texts that are there already, by key."""
        names = [source_name(self._digest(key)) for key in keys]
        found = {}
        for key, data in zip(keys, self._get(names), strict=True):
            source = self._try_source(key, data)
            if source and source.text is not None:
                found[key] = source.text
        return found

    def _sound(self, key: str, data: bytes | None, source: bytes | None) -> Memory | None:
        """The memory, if it and its source are there and sound."""
        if data is None or source is None or self._try_source(key, source) is None:
            return None
        try:
            return read_memory(key, data)
        except MemoryFormatError as error:
            logger.warning("memory %s %s is damaged and counts as missing: %s", key, self.path, error.got)
            return None

    def _try_source(self, key: str, data: bytes | None) -> Source | None:
        try:
            return read_source(self._digest(key), data, self._secret) if data is not None else None
        except MemoryFormatError as error:
            logger.warning("the source of memory %s %s is damaged and counts as missing: %s", key, self.path, error.got)
            return None

    def _source(self, handle_hex: str) -> Source | None:
        [data] = self._get([source_name(handle_hex)])
        try:
            return read_source(handle_hex, data, self._secret) if data is not None else None
        except MemoryFormatError as error:
            raise self._corrupt(f"source {handle_hex}: {error.got}") from error

    def _made_by(self) -> list[MadeBy]:
        names = self._names(MADE_BY)
        values = zip(names, self._get(names), strict=True)
        try:
            return [read_made_by(name, data) for name, data in values if data is not None]
        except MemoryFormatError as error:
            raise self._corrupt(f"a record of what memories were made by: {error.got}") from error

    def _problem(self, name: str, data: bytes) -> str | None:
        """What is wrong with a record, in words; None if nothing is."""
        try:
            if key := key_of(name):
                read_memory(key, data)
            elif handle_hex := digest_of(name):
                read_source(handle_hex, data, self._secret)
            elif name.startswith(MADE_BY):
                read_made_by(name, data)
            elif name != SECRET:
                return "a name that is not known"
        except MemoryFormatError as error:
            return error.got
        return None

    def _enter(self, configured: bytes | None) -> bytes:
        """The secret of the byte store, made if there is none and none is configured."""
        stored = self._get([SECRET])[0]
        if configured is not None:
            if stored is not None and not hmac.compare_digest(check_secret(configured), stored):
                raise self._other_secret()
            return check_secret(configured)
        if stored is None:
            self._bytes.mset([(SECRET, secrets.token_bytes(32))])
            stored = self._get([SECRET])[0]  # another process may have written its own meanwhile
        if stored is None or len(stored) < 16:
            raise self._corrupt("a broken secret")
        return stored

    def _check_secret(self) -> None:
        [stored] = self._get([SECRET])
        if stored is None:  # evicted
            self._bytes.mset([(SECRET, self._secret)])
        elif not hmac.compare_digest(self._secret, stored):
            raise self._other_secret()

    def _digest(self, key: str) -> str:
        return handle_digest(self._secret, key)

    def _names_of(self, key: str) -> tuple[str, str]:
        return memory_name(key), source_name(self._digest(key))

    def _names(self, prefix: str) -> list[str]:
        # Stores of files give more than was asked for.
        return [name for name in self._bytes.yield_keys(prefix=prefix) if name.startswith(prefix)]

    def _get(self, names: Sequence[str]) -> list[bytes | None]:
        return [check_value(value, self.path) for value in self._bytes.mget(list(names))] if names else []

    def _corrupt(self, got: str) -> CorruptStoreError:
        remedy = "Delete what is named here and compress it again."
        return CorruptStoreError(f"memories {self.path}", expected="sound contents", got=got[:500], remedy=remedy)

    def _other_secret(self) -> StoreError:
        return StoreError(
            f"memories {self.path}",
            expected="the secret that the byte store was first used with",
            got="another one",
            remedy="Open the cache again, and configure the same secret wherever the byte store is used.",
        )


def _chunks(items: list[Item]) -> Iterator[list[Item]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]

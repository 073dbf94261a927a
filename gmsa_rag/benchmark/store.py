"""`gmsa bench store`: writing and reading memories, and their bytes, beside the text, its KV cache and recomputing."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gmsa_rag.benchmark.harness import Alternative, Timing, measure
from gmsa_rag.benchmark.report import Bar, plot_bars
from gmsa_rag.benchmark.texts import make_passages
from gmsa_rag.errors import InputError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.memory.memory import Memory
from gmsa_rag.memory.store import MemoryStore

PUT, GET, RESOLVE, COMPRESS = "put_many", "get_many", "resolve each", "compress again"


@dataclass(frozen=True)
class StoreRow:
    """What one operation on a number of memories takes, in an SQLite file of its own.

    Attributes:
        operation: "put_many", "get_many" by key, "resolve each" by handle, or "compress again" for comparison.
        memories: Of one call.
        rate: Tokens per soft token.
        ms: Median milliseconds of a call.
        ms_quartiles: First and third quartile of it.
        ms_per_memory: The median divided by the memories.
        speedup: Median over the rounds of the time that compressing takes divided by this one's; higher is faster.
        source_tokens: Of all the passages.
        text_bytes: Of all the passages, UTF-8.
        memory_bytes: Of all the memories, as stored.
        bytes_per_token: The same for each source token.
        file_bytes: The file that holds them and their texts, grown from an empty one.
        kv_cache_bytes: Keys and values that the decoder would hold of the full text, in its dtype.
        soft_kv_cache_bytes: Those that it holds of the soft tokens.
    """

    operation: str
    memories: int
    rate: int
    ms: float
    ms_quartiles: tuple[float, float]
    ms_per_memory: float
    speedup: float
    source_tokens: int
    text_bytes: int
    memory_bytes: int
    bytes_per_token: float
    file_bytes: int
    kv_cache_bytes: int
    soft_kv_cache_bytes: int


def measure_store(
    gmsa: GMSA, counts: Sequence[int], tokens: int, rates: Sequence[int], *, repeats: int = 5
) -> list[StoreRow]:
    """Time a store's operations in turn, beside compressing the same passages again.

    Args:
        gmsa: The engine that compresses.
        counts: Memories a call.
        tokens: Of each passage.
        rates: Tokens per soft token.
        repeats: Rounds that count, >= 1.

    Returns:
        For each rate and number four rows.

    Raises:
        InputError: If there is nothing to measure.
    """
    if not counts or not rates:
        got = f"{len(counts)} numbers, {len(rates)} rates"
        raise InputError("store", expected="numbers of memories and rates", got=got, remedy="Ask for some.")
    rows: list[StoreRow] = []
    for rate in rates:
        for count in counts:
            rows += _measure(gmsa, make_passages(gmsa.codec, count, tokens), rate, repeats)
    return rows


def kv_bytes_per_token(gmsa: GMSA) -> int:
    """Bytes of keys and values that a decoder with full attention holds of each position."""
    config = gmsa.decoder.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * gmsa.decoder.dtype.itemsize)


def plot_store(rows: Sequence[StoreRow], path: Path) -> Path:
    """Draw milliseconds of each operation."""
    bars = [
        Bar(
            f"{row.operation}, {row.memories} at rate {row.rate}", row.ms, row.ms_quartiles,
            "C7" if row.operation == COMPRESS else "C0",
        )
        for row in rows
    ]  # fmt: skip
    return plot_bars(bars, path, title="Storing and fetching", x_label="milliseconds")


def _measure(gmsa: GMSA, passages: Sequence[str], rate: int, repeats: int) -> list[StoreRow]:
    memories = gmsa.compress(passages, rate)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "memories.db"
        empty = _file_bytes(path, [], [])
        grown = _file_bytes(path, memories, passages) - empty
        with MemoryStore(path) as store:
            timings = measure(
                [Alternative(name, run) for name, run in _operations(gmsa, store, memories, passages, rate).items()],
                baseline=COMPRESS, device=gmsa.decoder.device, repeats=repeats, memory=False,
            )  # fmt: skip
    return [_row(gmsa, timing, memories, passages, grown) for timing in timings]


def _operations(
    gmsa: GMSA, store: MemoryStore, memories: Sequence[Memory], passages: Sequence[str], rate: int
) -> dict[str, Callable[[], object]]:
    keys, handles = [memory.key for memory in memories], [store.handle(memory) for memory in memories]
    return {
        PUT: lambda: store.put_many(memories, passages),
        GET: lambda: store.get_many(keys),
        RESOLVE: lambda: [store.resolve(handle) for handle in handles],
        COMPRESS: lambda: gmsa.compress(passages, rate),
    }


def _file_bytes(path: Path, memories: Sequence[Memory], passages: Sequence[str]) -> int:
    """Size of a store's file with these in it; closing it empties the write-ahead log."""
    with MemoryStore(path) as store:
        store.put_many(memories, passages)
    return path.stat().st_size


def _row(gmsa: GMSA, timing: Timing, memories: Sequence[Memory], passages: Sequence[str], file_bytes: int) -> StoreRow:
    source = sum(memory.num_tokens for memory in memories)
    stored = sum(len(memory.to_bytes()) for memory in memories)
    return StoreRow(
        operation=timing.name,
        memories=len(memories),
        rate=memories[0].rate,
        ms=1_000 * timing.seconds,
        ms_quartiles=(1_000 * timing.seconds_quartiles[0], 1_000 * timing.seconds_quartiles[1]),
        ms_per_memory=1_000 * timing.seconds / len(memories),
        speedup=timing.speedup,
        source_tokens=source,
        text_bytes=sum(len(passage.encode()) for passage in passages),
        memory_bytes=stored,
        bytes_per_token=stored / source,
        file_bytes=file_bytes,
        kv_cache_bytes=kv_bytes_per_token(gmsa) * source,
        soft_kv_cache_bytes=kv_bytes_per_token(gmsa) * sum(memory.num_soft_tokens for memory in memories),
    )

"""Compressed documents in Redis: every host that shares it compresses nothing twice, and reads the same handles."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import redis
from langchain_core.documents import Document
from langchain_core.stores import BaseStore

from langchain_gmsa import ChatGMSA, GMSAContextCompressor, GMSAMemoryCache, format_docs, gmsa_prompt, neutralise

MODEL = os.environ.get("GMSA_MODEL", "gmsa-mini")
URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
LINES = (Path(__file__).parent / "data" / "passages.jsonl").read_text(encoding="utf-8").splitlines()[:3]
QUESTION = "By what name is the Mekong known inside China?"


class RedisByteStore(BaseStore[str, bytes]):
    """LangChain's key-value interface over a Redis client."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        return self.client.mget(keys) if keys else []

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        if key_value_pairs:
            self.client.mset(dict(key_value_pairs))

    def mdelete(self, keys: Sequence[str]) -> None:
        if keys:
            self.client.delete(*keys)

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        yield from (name.decode() for name in self.client.scan_iter(match=f"{prefix or ''}*"))


def host() -> GMSAMemoryCache:
    """What each host opens; the secret that handles are made with is kept in Redis."""
    return GMSAMemoryCache(RedisByteStore(redis.Redis.from_url(URL)))


def main() -> None:
    records = [json.loads(line) for line in LINES]
    documents = [Document(r["text"], id=r["id"], metadata={"title": r["title"]}) for r in records]

    indexing = host()
    before = len(indexing)
    compressed = GMSAContextCompressor(model=MODEL, rate=8, store=indexing).invoke(documents)
    print(f"found {before} memories, computed {len(indexing) - before}")

    answering = host()
    values = {"context": format_docs(compressed), "question": neutralise(QUESTION)}
    message = (gmsa_prompt | ChatGMSA(model=MODEL, store=answering, max_tokens=32)).invoke(values)
    print(f"{QUESTION} -> {message.text!r}, read as {message.response_metadata['gmsa']}")

    print(f"forgot {answering.forget(documents[0].page_content)} memory, {len(indexing)} are left for all hosts")


if __name__ == "__main__":
    try:
        main()
    except redis.ConnectionError as error:
        sys.exit(f"No Redis at {URL} ({error}). Start one with `redis-server`, or set REDIS_URL.")

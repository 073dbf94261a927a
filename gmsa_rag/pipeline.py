"""The whole job without a framework: index documents, find passages, answer from their memories."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from gmsa_rag.checks import check_rate, check_text
from gmsa_rag.documents import Document, Root
from gmsa_rag.errors import FingerprintError, RateError, StoreError, UnknownMemoryError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Answer, Part, parse_answer
from gmsa_rag.memory.embedding import MINILM, Embedder, load_embedder
from gmsa_rag.memory.handles import neutralise
from gmsa_rag.memory.index import Entry, Hit, VectorIndex
from gmsa_rag.memory.keys import memory_key
from gmsa_rag.memory.memory import Memory
from gmsa_rag.memory.store import MemoryStore
from gmsa_rag.results import Indexed, Reply, Seconds, Source
from gmsa_rag.rows import Plan, batches, check_root, document_of, forget, leaves, noting, only_of, title_of

__all__ = ["Indexed", "Library", "Reply", "Seconds", "Source", "forget", "noted_models"]

Row = tuple[Document, Any, dict[str, Any]]  # its vector, and the metadata of its row

BATCH = 32
DEFAULT_MODEL = "gmsa-mini"


class Library:
    """Documents in one SQLite file: their vectors for retrieval, their memories for answering.

    The original text is embedded and kept; what is compressed, and what the decoder reads, is the neutralised text.
    Each row's metadata says which checkpoint and rate its memory is of, and which model embedded it.

    Args:
        path: The file, made if missing; ":memory:" keeps everything in memory.
        gmsa: Compresses and answers.
        embedder: Embeds documents and questions.
        model: Name that `gmsa` was loaded by, noted for the next one who opens the file; "" for none.
        embedder_name: Name that `embedder` was loaded by. Vectors of two models do not mix.
        namespace: Of the file; made if missing.
    Raises:
        StoreError: If the file cannot be opened, see MemoryStore.
        DependencyError: If faiss is missing, or installed twice.
    """

    def __init__(
        self,
        path: str | Path,
        gmsa: GMSA,
        embedder: Embedder,
        *,
        model: str = "",
        embedder_name: str = MINILM,
        namespace: str = "default",
    ) -> None:
        self.gmsa, self.embedder, self.model, self.embedder_name = gmsa, embedder, model, embedder_name
        self.store = MemoryStore(path, namespace)
        try:
            self.index = VectorIndex(path, namespace)
        except BaseException:
            self.store.close()
            raise

    @classmethod
    def open(
        cls, path: str | Path, *, model: str | None = None, embedder: str | None = None, device: str = "auto"
    ) -> Library:
        """Open a file with the models it was made with.

        Args:
            path: The file, made if missing.
            model: Checkpoint; None takes the one the file notes, "gmsa-mini" for a new file.
            embedder: Embedding model; None takes the one the file notes, "minilm" for a new file.
            device: "auto" takes cuda, mps or cpu, the first there is.
        Returns:
            The library; close it when done.
        Raises:
            CheckpointError: If a model cannot be loaded.
            StoreError: If the file cannot be opened.
        """
        noted = noted_models(path)
        model = _full_name(model or noted[0] or DEFAULT_MODEL)
        embedder = _full_name(embedder or noted[1] or MINILM)
        gmsa = GMSA.from_pretrained(model, device=device)
        vectors = load_embedder(embedder, str(gmsa.decoder.device))
        return cls(path, gmsa, vectors, model=model, embedder_name=embedder)

    def add(
        self,
        documents: Sequence[Document],
        rate: int = 8,
        *,
        root: Root | None = None,
        recompute: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Indexed:
        """Embed and compress documents. Doing it again changes nothing, and computes nothing.

        The rows of the index are written last and together: an interruption leaves the index as it was, and the
        memories computed so far in the store, where the next call finds them.

        Args:
            documents: From read_documents(). One with the id of a row replaces it. Rows of the same source that are
                not among them are removed, and so are their memories; other roots' rows never are.
            rate: Tokens per soft token, >= 1.
            root: Of what was read, root_of(path); where it is whole, its other rows are removed, too.
            recompute: Compress all other rows again, each at its own rate, with the checkpoint in use.
            progress: Called with the passages done and all of them, after each batch.
        Returns:
            Counts.
        Raises:
            RateError: If the rate is not an int >= 1.
            FingerprintError: If other rows have memories of another checkpoint.
            StoreError: If a row of another root has the id of a document and not its text, if other rows were
                embedded with another model, or the file cannot be written.
        """
        started = time.perf_counter()
        check_rate(rate)
        plan = self._plan(documents, rate, root, recompute)
        jobs = [(noting(document, root), rate) for document in documents] + plan.again
        rows: list[Row] = []
        computed = 0
        for batch, of in batches(jobs, BATCH):
            done, new = self._compute(batch, of)
            rows, computed = rows + done, computed + new
            if progress is not None:
                progress(len(rows), len(jobs))
        self._write(rows, plan)
        counts = [(row["gmsa_num_tokens"], row["gmsa_num_soft_tokens"]) for _, _, row in rows[: len(documents)]]
        tokens, soft = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
        return Indexed(len(documents), computed, tokens, soft, len(plan.stale), time.perf_counter() - started)

    def ask(
        self,
        question: str,
        k: int = 3,
        rate: int | None = None,
        *,
        from_text: bool = False,
        recompute: bool = False,
        max_new_tokens: int = 32,
    ) -> Reply:
        """Answer a question from the passages nearest to it.

        Passages that do not fit into the decoder are left out from the end and named in `answer.dropped`.

        Args:
            question: The question; it is neutralised.
            k: Passages to retrieve, >= 1.
            rate: The rate of the memories; None takes that of the index.
            from_text: Have the decoder read the full text of the passages.
            recompute: Compress passages whose memory is missing, of another checkpoint or of another rate, and store
                the memories; without it they are errors.
            max_new_tokens: Most tokens of the answer.
        Raises:
            StoreError: If nothing is indexed, the questions' embedding model is not the documents', or a row came
                without a memory.
            FingerprintError: If a memory is of another checkpoint than the one in use.
            RateError: If the index has another rate.
            UnknownMemoryError: If a memory is no longer in the store.
            PromptTooLongError: If the question alone does not fit.
        """
        clock = _Clock()
        hits = self._retrieve(question, k)
        retrieval = clock.lap()
        texts = [neutralise(hit.entry.text) for hit in hits]
        titles = [neutralise(title_of(hit.entry)) for hit in hits]
        memories: list[Part] = [*self._fetch([hit.entry for hit in hits], texts, rate, recompute)]
        fetch = 0.0 if from_text else clock.lap()
        answer, first, decoding = self._decode(question, texts if from_text else memories, titles, max_new_tokens)
        return Reply(
            question,
            answer,
            tuple(
                Source(n, hit.entry.id, title_of(hit.entry), hit.score, hit.entry.text) for n, hit in enumerate(hits, 1)
            ),
            from_text,
            self.gmsa.num_positions(self._prompt(question, memories, titles)),
            self.gmsa.num_positions(self._prompt(question, texts, titles)),
            Seconds(retrieval, fetch, fetch + first, retrieval + fetch + decoding),
        )

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        self.index.close()
        self.store.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _plan(self, documents: Sequence[Document], rate: int, root: Root | None, recompute: bool) -> Plan:
        """What the documents mean for the rows; an error if the other rows would not go with the new ones."""
        given, sources = {document.id: document for document in documents}, {document.source for document in documents}
        plan = Plan()
        for entry in self.index.entries():
            document = given.get(entry.id)
            if document is not None:
                check_root(entry, document, root, self.index.path)
                plan.outdated += [entry.text] * (entry.text != document.text)
            elif leaves(entry, sources, root):
                plan.stale.append(entry.id)
                plan.outdated.append(entry.text)
            else:
                self._check_embedder(entry)
                if recompute:
                    plan.again.append((document_of(entry), check_rate(entry.metadata.get("gmsa_rate", rate))))
                else:
                    self._check_fingerprint(entry)
        plan.again.sort(key=itemgetter(1))
        return plan

    def _compute(self, documents: Sequence[Document], rate: int) -> tuple[list[Row], int]:
        """Rows of documents, and how many of their memories were not in the store."""
        texts = [neutralise(document.text) for document in documents]
        keys = {memory_key(self.gmsa.fingerprint, rate, text) for text in texts}
        new = sum(key not in self.store for key in keys)
        memories = self.gmsa.compress(texts, rate, store=self.store)
        return [*zip(documents, self._embed(documents), map(self._metadata, documents, memories), strict=True)], new

    def _embed(self, documents: Sequence[Document]) -> list[Any]:
        """A vector for each document, that of its row where the text has not changed."""
        rows = self.index.get([document.id for document in documents])
        kept = [
            row.vector if row and row.text == document.text and self._embedded(row) else None
            for row, document in zip(rows, documents, strict=True)
        ]
        fresh = [document.text for document, vector in zip(documents, kept, strict=True) if vector is None]
        vectors = iter(self.embedder.encode_document(fresh, show_progress_bar=False) if fresh else ())
        return [next(vectors) if vector is None else vector for vector in kept]

    def _metadata(self, document: Document, memory: Memory) -> dict[str, Any]:
        return {
            **document.metadata,
            "title": document.title,
            "gmsa_source": document.source or document.id,
            "gmsa_model": self.model,
            "gmsa_embedder": self.embedder_name,
            "gmsa_key": memory.key,
            "gmsa_rate": memory.rate,
            "gmsa_num_tokens": memory.num_tokens,
            "gmsa_num_soft_tokens": memory.num_soft_tokens,
            "gmsa_fingerprint": memory.fingerprint,
        }

    def _write(self, rows: list[Row], plan: Plan) -> None:
        if rows:
            documents, vectors, metadatas = zip(*rows, strict=True)
            texts, ids = [document.text for document in documents], [document.id for document in documents]
            self.index.add(texts, np.stack(vectors), metadatas, ids, remove=plan.stale)
        elif plan.stale:
            self.index.delete(plan.stale)
        if gone := only_of(plan.outdated, self.index):
            self.store.forget_many(gone)

    def _retrieve(self, question: str, k: int) -> list[Hit]:
        check_text(question, "question")
        vector = self.embedder.encode_query([question], show_progress_bar=False)[0]
        hits = self.index.search(vector, k)
        if not hits:
            raise StoreError(
                f"store {self.index.path}",
                expected="indexed documents",
                got="none",
                remedy="Index some first: `gmsa index DOCUMENTS --out STORE`.",
            )
        for hit in hits:
            self._check_embedder(hit.entry)
        return hits

    def _fetch(self, entries: list[Entry], texts: list[str], rate: int | None, recompute: bool) -> list[Memory]:
        """The memories of rows, in order."""
        rates = [check_rate(entry.metadata.get("gmsa_rate", 8) if rate is None else rate) for entry in entries]
        if recompute:
            pairs = zip(texts, rates, strict=True)
            return [self.gmsa.compress(text, of, store=self.store) for text, of in pairs]
        for entry, wanted in zip(entries, rates, strict=True):
            self._check_fingerprint(entry)
            _check_same_rate(entry, wanted)
        keys = [memory_key(self.gmsa.fingerprint, of, text) for text, of in zip(texts, rates, strict=True)]
        found = self.store.get_many(keys)
        return [memory or _gone(entry) for entry, memory in zip(entries, found, strict=True)]

    def _decode(
        self, question: str, parts: Sequence[Part], titles: Sequence[str], max_new_tokens: int
    ) -> tuple[Answer, float, float]:
        """The answer, and the seconds to its first piece and to its end."""
        clock = _Clock()
        prompt, kept = self.gmsa.fit_answer_prompt(neutralise(question), parts, titles, room=max_new_tokens)
        stream = self.gmsa.stream(prompt, max_new_tokens=max_new_tokens)
        pieces = [(piece, clock.seconds()) for piece in stream]
        total = clock.seconds()
        answer = parse_answer(
            "".join(piece for piece, _ in pieces),
            self.gmsa.config,
            num_passages=kept,
            num_dropped=len(parts) - kept,
            finish_reason=stream.finish_reason or "length",
        )
        return answer, pieces[0][1] if pieces else total, total

    def _prompt(self, question: str, parts: Sequence[Part], titles: Sequence[str]) -> list[Part]:
        return self.gmsa.answer_prompt(neutralise(question), parts, titles)

    def _embedded(self, entry: Entry) -> bool:
        return bool(entry.metadata.get("gmsa_embedder") == self.embedder_name)

    def _check_embedder(self, entry: Entry) -> None:
        if not self._embedded(entry):
            raise StoreError(
                f"passage {entry.id!r} of store {self.index.path}",
                expected=f"a vector of the embedding model {self.embedder_name}",
                got=f"one of {entry.metadata.get('gmsa_embedder', 'a model that was not noted')}",
                remedy="Use the embedding model that the store was made with, or index into a new store.",
            )

    def _check_fingerprint(self, entry: Entry) -> None:
        fingerprint = str(entry.metadata.get("gmsa_fingerprint", ""))
        if fingerprint != self.gmsa.fingerprint:
            got = f"one of {entry.metadata.get('gmsa_model') or 'another'} ({fingerprint[:16]}…)"
            raise FingerprintError(
                f"passage {entry.id!r} of store {self.index.path}",
                expected=f"a memory of {self.model or 'this checkpoint'} ({self.gmsa.fingerprint[:16]}…)",
                got=got if fingerprint else "no memory",
                remedy="Use the checkpoint that the store was made with, or compress again with the one in use: "
                "`gmsa index DOCUMENTS --out STORE --recompute` for the whole store, `gmsa ask --recompute` for what a "
                "question retrieves.",
            )


def noted_models(path: str | Path) -> tuple[str, str]:
    """Names of the checkpoint and of the embedding model that a file was made with; "" where it notes none."""
    if not Path(path).exists():
        return "", ""
    with VectorIndex(path) as index:
        noted = next((entry.metadata for entry in index.entries() if "gmsa_model" in entry.metadata), {})
    return str(noted.get("gmsa_model", "")), str(noted.get("gmsa_embedder", ""))


class _Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def lap(self) -> float:
        seconds = self.seconds()
        self._start = time.perf_counter()
        return seconds


def _full_name(name: str) -> str:
    """A name that means the same in another working directory."""
    return str(Path(name).resolve()) if "/" in name and Path(name).is_dir() else name


def _check_same_rate(entry: Entry, rate: int) -> None:
    if entry.metadata.get("gmsa_rate") != rate:
        raise RateError(
            f"passage {entry.id!r}",
            expected=f"the rate {entry.metadata.get('gmsa_rate')} it was indexed at",
            got=str(rate),
            remedy="Ask at that rate, index again at the other, or recompute the memories.",
        )


def _gone(entry: Entry) -> NoReturn:
    raise UnknownMemoryError(
        f"memory of passage {entry.id!r}",
        expected="it in the store",
        got="none",
        remedy="Index the document again, or recompute the memories.",
    )

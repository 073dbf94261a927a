"""`make demo`: index passages, answer questions from their memories, and set full text beside it.

An answer is right when a reference answer is contained in it, both in SQuAD's normal form (cover match); exact match
(EM) is printed as well. Wrong answers are shown as they are.
"""

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars for loading weights, too
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from gmsa_rag.documents import Document, read_documents
from gmsa_rag.evaluation.metrics import cover_match, exact_match
from gmsa_rag.pipeline import Library, Reply

DATA = Path(__file__).parent / "data"
RESTORED = ("danube", "lise-meitner")


@dataclass(frozen=True)
class Outcome:
    """One question, answered twice."""

    reference: list[str]
    memories: Reply
    text: Reply

    def score(self, reply: Reply) -> tuple[bool, bool]:
        """Whether the answer is right, and whether it matches exactly."""
        answer = reply.answer.text
        return bool(cover_match(answer, self.reference)), bool(exact_match(answer, self.reference))


def main() -> None:
    arguments = parse_arguments()
    documents = read_documents(DATA / "passages.jsonl")
    lines = (DATA / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    with (
        tempfile.TemporaryDirectory() as folder,
        Library.open(Path(folder) / "store.db", model=arguments.model, device=arguments.device) as library,
    ):
        done = library.add(documents, arguments.rate)
        print(
            f"Indexed {done.passages} passages with {library.model} at rate {arguments.rate} in {done.seconds:.1f} s: "
            f"{done.num_tokens} tokens became {done.num_soft_tokens} soft tokens.\n"
        )
        warm_up(library)
        outcomes = [ask(library, json.loads(line), arguments.k) for line in lines]
        show_restorations(library, documents, arguments.rate)
    summarise(outcomes, arguments.k)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=os.environ.get("GMSA_MODEL", "gmsa-mini"), help="name or directory")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rate", type=int, default=4, help="tokens per soft token")
    parser.add_argument("--k", type=int, default=3, help="passages retrieved for a question")
    return parser.parse_args()


def warm_up(library: Library) -> None:
    """Have the first question's times be like those of the others."""
    for from_text in (False, True):
        library.ask("Which river is the longest?", from_text=from_text, max_new_tokens=2)


def ask(library: Library, record: dict[str, object], k: int) -> Outcome:
    question, reference = str(record["question"]), [str(answer) for answer in record["answers"]]  # type: ignore[attr-defined]
    outcome = Outcome(reference, library.ask(question, k), library.ask(question, k, from_text=True))
    memories, text = outcome.memories, outcome.text
    print(f"Question:       {question}")
    print(f"Reference:      {' | '.join(reference)}")
    print(f"From memories:  {describe(outcome, memories)}")
    print(f"From full text: {describe(outcome, text)}")
    print(f"Retrieved:      {', '.join(f'[{s.number}] {s.title} ({s.score:.2f})' for s in memories.sources)}")
    print(f"Prompt tokens:  {memories.positions} with compression, {memories.positions_text} without")
    print(
        f"First token:    {1000 * memories.seconds.first_token:.0f} ms from memories (read from the store: "
        f"{1000 * memories.seconds.fetch:.1f} ms), {1000 * text.seconds.first_token:.0f} ms from full text\n"
    )
    return outcome


def describe(outcome: Outcome, reply: Reply) -> str:
    """An answer, its verdict and the passages it cites."""
    right, exact = outcome.score(reply)
    verdict = "right, EM" if exact else "right" if right else "wrong"
    cited = ", ".join(f"[{source.number}] {source.title}" for source in reply.cited) or "none"
    dropped = f"; did not fit: {list(reply.answer.dropped)}" if reply.answer.dropped else ""
    return f"{reply.answer.text!r} ({verdict}; cited: {cited}{dropped})"


def show_restorations(library: Library, documents: list[Document], rate: int) -> None:
    for document in documents:
        if document.id in RESTORED:
            memory = library.gmsa.compress(document.text, rate, store=library.store)  # read, not computed
            print(f"Passage {document.title!r}, {memory.num_tokens} tokens in {memory.num_soft_tokens} soft tokens")
            print(f"  original: {document.text}")
            print(f"  restored: {library.gmsa.restore(memory)}\n")


def summarise(outcomes: list[Outcome], k: int) -> None:
    total = len(outcomes)
    print(f"Summary over {total} questions, {k} passages each (right: a reference answer is contained in the answer)")
    for name in ("memories", "text"):
        replies: list[Reply] = [getattr(outcome, name) for outcome in outcomes]
        scores = [outcome.score(reply) for outcome, reply in zip(outcomes, replies, strict=True)]
        right, exact = (sum(column) for column in zip(*scores, strict=True))
        tokens = statistics.mean(reply.positions_text if reply.from_text else reply.positions for reply in replies)
        first = statistics.median(reply.seconds.first_token for reply in replies)
        print(
            f"  {'from memories:' if name == 'memories' else 'from full text:':<15} {right} of {total} right "
            f"({right / total:.0%}), EM {exact / total:.0%}, {tokens:.0f} prompt tokens on average, "
            f"first token after {1000 * first:.0f} ms (median)"
        )


if __name__ == "__main__":
    main()

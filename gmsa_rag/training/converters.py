"""Public question datasets in the form that training reads: one function a dataset, from its row to ours.

A converter raises ValueError where a row has no question to learn from, such as one without an answer.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gmsa_rag.training.files import Row

SUMMARISE = "Summarise these articles."
_NO_SPACE_BEFORE = frozenset([*",.;:?!)]%", "''", "'s", "n't"])
_NO_SPACE_AFTER = frozenset([*"([$", "``"])
_QUOTES = {"``": '"', "''": '"'}


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hugging Face hub.

    Attributes:
        hub: Its id there.
        convert: From its row to ours: contexts, gold, question, answers.
        config: Its configuration, None for the only one.
    """

    hub: str
    convert: Callable[[Row], Row]
    config: str | None = None


def squad(row: Row) -> Row:
    """SQuAD 1.1 and 2.0: a paragraph and a question. Source: hub, rajpurkar/squad."""
    context = {"title": row["title"].replace("_", " "), "text": row["context"]}
    return _row(row, row["question"], row["answers"]["text"], [context], [0])


def natural_questions(row: Row) -> Row:
    """Natural Questions: the paragraph around the short answer, or a row of retrieved `ctxs`.

    Of several spans the first is trained on, the others are accepted. Source: hub,
    google-research-datasets/natural_questions.
    """
    if "ctxs" in row:
        return _retrieved(row)
    tokens = list(zip(row["document"]["tokens"]["token"], row["document"]["tokens"]["is_html"], strict=True))
    spans = [span for note in _records(row["annotations"]) for span in _records(note["short_answers"])]
    if not spans:
        raise ValueError("no short answer")
    start, end = _paragraph(tokens, spans[0]["start_token"], spans[0]["end_token"])
    answers = [_join(tokens[span["start_token"] : span["end_token"]]) for span in spans]
    context = {"title": row["document"]["title"], "text": _join(tokens[start:end])}
    return _row(row, row["question"]["text"], answers, [context], [0])


def multi_hop(row: Row) -> Row:
    """HotpotQA and 2WikiMultihopQA: paragraphs of sentences, those of the supporting facts being gold.

    Gold paragraphs that hold the answer come first: it is the first that training asks about. Both the hub's columns
    and the original lists of [title, sentences] are read. Source: hub, hotpotqa/hotpot_qa (distractor) and
    framolfese/2WikiMultihopQA.
    """
    pairs = _pairs(row["context"], "sentences")
    named = {title for title, _ in _pairs(row["supporting_facts"], "sent_id")}
    texts = [" ".join(sentence.strip() for sentence in sentences) for _, sentences in pairs]
    gold = [index for index, (title, _) in enumerate(pairs) if title in named]
    if not gold:
        raise ValueError("no paragraph is named by a supporting fact")
    gold.sort(key=lambda index: str(row["answer"]) not in texts[index])
    contexts = [{"title": title, "text": text} for (title, _), text in zip(pairs, texts, strict=True)]
    return _row(row, row["question"], [row["answer"]], contexts, gold)


def narrativeqa(row: Row) -> Row:
    """NarrativeQA, asked of the summary of the story. Source: hub, deepmind/narrativeqa."""
    summary = row["document"]["summary"]
    answers = [answer["text"] for answer in _records(row["answers"])]
    context = {"title": summary.get("title") or "", "text": summary["text"]}
    return _row(row, row["question"]["text"], answers, [context], [0])


def multi_news(row: Row) -> Row:
    """Multi-News: articles, all of them gold, and their summary. Source: hub, Awesome075/multi_news_parquet."""
    articles = [part.replace("NEWLINE_CHAR", "\n").strip() for part in row["document"].split("|||||")]
    contexts = [{"title": "", "text": article} for article in articles if article]
    if not contexts:
        raise ValueError("no article")
    summary = row["summary"].strip().removeprefix("\u2013")
    return _row(row, SUMMARISE, [summary], contexts, list(range(len(contexts))))


DATASETS = {
    "2wikimultihopqa": HubDataset("framolfese/2WikiMultihopQA", multi_hop),
    "hotpotqa": HubDataset("hotpotqa/hotpot_qa", multi_hop, "distractor"),
    "multinews": HubDataset("Awesome075/multi_news_parquet", multi_news),
    "narrativeqa": HubDataset("deepmind/narrativeqa", narrativeqa),
    "natural_questions": HubDataset("google-research-datasets/natural_questions", natural_questions, "default"),
    "squad": HubDataset("rajpurkar/squad", squad),
}


def _row(source: Row, question: str, answers: Iterable[str | None], contexts: Sequence[Row], gold: list[int]) -> Row:
    """A row of ours; answers that are blank or come twice are dropped."""
    kept = list(dict.fromkeys(answer.strip() for answer in answers if answer and answer.strip()))
    if not kept:
        raise ValueError("no answer")
    name = source.get("id") or source.get("_id")
    return {"id": name, "contexts": list(contexts), "gold": gold, "question": question.strip(), "answers": kept}


def _retrieved(row: Row) -> Row:
    answers = row["answers"] if "answers" in row else row["answer"]
    contexts = [{"title": context.get("title") or "", "text": context["text"]} for context in row["ctxs"]]
    gold = [i for i, context in enumerate(contexts) if any(answer in context["text"] for answer in answers)]
    if not gold:
        raise ValueError("no context holds an answer")
    return _row(row, row["question"], answers, contexts, gold)


def _records(value: Any) -> list[Row]:
    """A list of objects, which the hub keeps as an object of lists."""
    if not isinstance(value, dict):
        return list(value)
    return [dict(zip(value, fields, strict=True)) for fields in zip(*value.values(), strict=True)]


def _pairs(value: Any, second: str) -> list[tuple[str, Any]]:
    """Pairs of a title and what belongs to it, from the hub's columns or the original's lists."""
    value = _decoded(value)
    if isinstance(value, dict):
        return list(zip(value["title"], value[second], strict=True))
    return [(_decoded(title), _decoded(other)) for title, other in value]


def _decoded(value: Any) -> Any:
    """The value, decoded where it is JSON in a text, as lists of mixed types become on their way through a table."""
    if not isinstance(value, str) or value[:1] not in {"[", "{", '"'}:
        return value
    try:
        return json.loads(value)
    except ValueError:  # a title that begins like JSON
        return value


def _paragraph(tokens: Sequence[tuple[str, bool]], start: int, end: int) -> tuple[int, int]:
    """Bounds of the paragraph around an answer, without its tags."""
    before = next((i for i in range(start - 1, -1, -1) if _is_tag(tokens[i], "P")), None)
    after = next((i for i in range(end, len(tokens)) if _is_tag(tokens[i], "P")), None)
    if before is None or after is None or tokens[before][0][1] == "/":
        raise ValueError("no paragraph around the short answer")
    return before + 1, after


def _is_tag(token: tuple[str, bool], name: str) -> bool:
    return token[1] and re.fullmatch(rf"</?{name}>", token[0], re.IGNORECASE) is not None


def _join(tokens: Sequence[tuple[str, bool]]) -> str:
    """Words as a text. Spaces depend on neighbours alone, so that an answer's text is found in its paragraph's."""
    words = [word for word, is_html in tokens if not is_html]
    text, last = "", ""
    for word in words:
        space = " " if text and word not in _NO_SPACE_BEFORE and last not in _NO_SPACE_AFTER else ""
        text += space + _QUOTES.get(word, word)
        last = word
    return text

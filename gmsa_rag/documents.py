"""Documents to index: text files and JSONL, read and validated as a whole before anything is written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from gmsa_rag.errors import DataError, InputError
from gmsa_rag.memory.keys import digest

TEXT_SUFFIXES = (".txt", ".md")
_PARAGRAPH = re.compile(r"\n[ \t]*\r?\n\s*")
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'\u201d\u2019)\]]*\s+(?=\S)")
_WORD = re.compile(r"\s+(?=\S)")


@dataclass(frozen=True)
class Document:
    """A passage to index.

    Attributes:
        id: Its name, unique among the documents: as given, or the file's path, or a digest of title and text; with
            `#2` and so on where a longer text was split.
        text: What is embedded and compressed, not blank.
        title: "" for none.
        source: The id of the text it is a part of; its own where that was not split.
        metadata: Other fields of a JSONL record.
    """

    id: str
    text: str
    title: str = ""
    source: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Root:
    """Where documents come from, for rows to tell the passages of one folder or file from those of another.

    Attributes:
        digest: 32 hex digits of the resolved path, which itself is not kept.
        whole: Whether all of its passages were read, so that others of it are there no more.
    """

    digest: str
    whole: bool


def root_of(path: str | Path) -> Root:
    """The root of what read_documents() reads at a path.

    Args:
        path: A directory or a .jsonl file, which is its own root; or a text file, which is a part of its directory.
    Returns:
        The same root for every name of the path on one machine.
    """
    path = Path(path).resolve()
    whole = path.is_dir() or path.suffix.lower() == ".jsonl"
    root = path if whole else path.parent
    return Root(digest(os.fsencode(root)).hex()[:32], whole)


def read_documents(path: str | Path, *, words: int = 200) -> list[Document]:
    """Read what is to be indexed. Nothing is returned unless all of it is sound.

    Args:
        path: A directory of .txt and .md files (with its subdirectories, hidden ones left out, sorted by path), one
            such file, or a .jsonl file: one object a line with `text`, and `id`, `title` and other fields as wanted.
        words: Length of a passage; longer texts are split at the borders of paragraphs and sentences. 0 splits nothing.
    Returns:
        The passages, in order; records without an id that are equal come once.
    Raises:
        DataError: If a file is missing, empty, not UTF-8 or malformed, or two records have the same id; the file and
            the line or byte are named.
        InputError: If words is negative.
    """
    path = Path(path)
    if words < 0:
        raise InputError("words", expected="an int >= 0", got=str(words), remedy="Use 0 to split nothing.")
    if path.suffix.lower() == ".jsonl" and path.is_file():
        documents = _read_jsonl(path)
    else:
        root = path if path.is_dir() else path.parent
        documents = [_read_text(file, file.relative_to(root).as_posix()) for file in _text_files(path)]
    parts = [part for document in documents for part in _split(document, words)]
    _check_names(parts, path)
    return parts


def split_text(text: str, *, words: int = 200) -> list[str]:
    """Cut a text into passages of about so many words.

    Whole paragraphs are taken together while they fit, longer ones are cut between sentences, and a sentence longer
    than a passage between words. A last passage of under a quarter of the words joins the one before.

    Args:
        text: Any text.
        words: Length of a passage, >= 1.
    Returns:
        The passages in order, none blank; together they hold every word of the text.
    Example:
        >>> split_text("One two three. Four five six. Seven.", words=4)
        ['One two three.', 'Four five six. Seven.']
    """
    passages: list[str] = []
    counts: list[int] = []
    for start, piece in _pieces(text.strip(), words):
        count = len(piece.split())
        fits = counts and (counts[-1] + count <= words)
        short_end = counts and start + len(piece) == len(text.strip()) and 4 * count <= words
        if fits or short_end:
            passages[-1] += piece
            counts[-1] += count
        else:
            passages.append(piece)
            counts.append(count)
    return [passage.strip() for passage in passages]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, a byte order mark left out; DataError names the file and the byte."""
    return decode_utf8(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """The bytes of a file; DataError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        _refuse(str(path), "a file to read", error.strerror or str(error), "Check the path and its permissions.", error)


def decode_utf8(data: bytes, what: str, offset: int = 0) -> str:
    """Text of bytes that must be UTF-8; DataError names the byte, counted from `offset`."""
    try:
        return data.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        got = f"byte 0x{data[error.start]:02x} at offset {offset + error.start} ({error.reason})"
        _refuse(what, "UTF-8 text", got, "Save it as UTF-8, e.g. `iconv -f latin1 -t utf-8`.", error)


def _text_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES and file.is_file()]
        visible = sorted(file for file in files if not _hidden(file.relative_to(path)))
        remedy = "Name another, or a .jsonl file; `gmsa forget` removes what a store holds of it."
        return visible or _refuse(str(path), "a directory of .txt or .md files", "none", remedy)
    if not path.exists():
        _refuse(str(path), "a directory, a .txt, .md or .jsonl file", "nothing there", "Check the path.")
    if path.suffix.lower() not in TEXT_SUFFIXES:
        got = f"a {path.suffix or 'nameless'} file"
        _refuse(str(path), "a .txt, .md or .jsonl file, or a directory", got, "Convert it to text first.")
    return [path]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read_text(path: Path, name: str) -> Document:
    text = read_text(path)
    if not text.strip():
        _refuse(str(path), "some text", "an empty file", "Fill it, or take it away.")
    return Document(name, text, Path(name).stem, name)


def _read_jsonl(path: Path) -> list[Document]:
    documents: dict[str, Document] = {}
    lines: dict[str, int] = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        document, given = _record(line, where)
        if given and document.id in documents:
            got = f"{document.id!r}, also in line {lines[document.id]}"
            _refuse(where, "an id of its own", got, "Give each record another id, or none.")
        documents.setdefault(document.id, document)
        lines.setdefault(document.id, number)
    if not documents:
        _refuse(str(path), "at least one record", "an empty file", 'Write lines such as {"text": "..."}.')
    return list(documents.values())


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank."""
    offset = 0
    # Only b"\n" ends a line: str.splitlines would also cut at characters that JSON allows inside a text.
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        text = decode_utf8(line, f"{path}, line {number}", offset)
        offset += len(line) + 1
        if text.strip():
            yield number, text


def _record(line: str, where: str) -> tuple[Document, bool]:
    """The document of a JSONL line, and whether its id was given."""
    try:
        values = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _refuse(where, "a JSON object", str(error), "Mend the line.", error)
    if not isinstance(values, dict):
        _refuse(where, "a JSON object", type(values).__name__, 'Write {"text": "..."}.')
    text, title = values.pop("text", None), values.pop("title", None) or ""
    name = values.pop("id", None)
    if not isinstance(text, str) or not text.strip():
        got = "none" if text is None else f"{text!r}"[:80]
        _refuse(where, "a field `text` with some text", got, 'Write {"text": "..."}.')
    if not isinstance(title, str):
        _refuse(where, "a field `title` of text", repr(title)[:80], "Put it in quotation marks.")
    if name is not None and (isinstance(name, bool) or not isinstance(name, (str, int)) or name == ""):
        _refuse(where, "a field `id` of text or a whole number", repr(name)[:80], "Change it, or leave it out.")
    _check_unicode((text, title, json.dumps([name, values], ensure_ascii=False)), where)
    given = name is not None
    name = str(name) if given else digest(title.encode(), text.encode()).hex()[:32]
    return Document(name, text, title, name, values), given


def _check_unicode(texts: Iterable[str], where: str) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            got = f"a lone surrogate, \\u{ord(text[error.start]):04x}"
            _refuse(where, "valid Unicode", got, "Mend the escape.", error)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is not JSON")


def _split(document: Document, words: int) -> list[Document]:
    if not words or len(document.text.split()) <= words:
        return [document]
    texts = split_text(document.text, words=words)
    names = [f"{document.id}#{number}" for number in range(1, len(texts) + 1)]
    return [
        Document(name, text, document.title, document.source, document.metadata)
        for name, text in zip(names, texts, strict=True)
    ]


def _check_names(parts: list[Document], path: Path) -> None:
    seen: set[str] = set()
    for part in parts:
        if part.id in seen:
            _refuse(str(path), "ids of their own", f"{part.id!r} twice, once from splitting", "Use ids without `#`.")
        seen.add(part.id)


def _pieces(text: str, words: int) -> Iterator[tuple[int, str]]:
    """Where each paragraph, sentence or run of words starts, and its text with the white space after it."""
    for start, paragraph in _cut(text, _PARAGRAPH):
        if len(paragraph.split()) <= words:
            yield start, paragraph
            continue
        for offset, sentence in _cut(paragraph, _SENTENCE):
            yield from ((start + offset + at, run) for at, run in _runs(sentence, words))


def _cut(text: str, border: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    start = 0
    for match in border.finditer(text):
        yield start, text[start : match.end()]
        start = match.end()
    yield start, text[start:]


def _runs(sentence: str, words: int) -> Iterator[tuple[int, str]]:
    cuts = [0, *(match.end() for match in _WORD.finditer(sentence))][::words]
    for start, end in zip(cuts, [*cuts[1:], len(sentence)], strict=True):
        yield start, sentence[start:end]


def _refuse(what: str, expected: str, got: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    raise DataError(what, expected=expected, got=got, remedy=remedy) from cause

"""Handles: what is one, what only looks like one, and what a prompt becomes."""

import hashlib
import hmac
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmsa_rag.errors import HandleNotAllowedError, InputError, MalformedHandleError, UnknownMemoryError
from gmsa_rag.memory import Handle, Memory, find_handles, make_handle, neutralise, resolve_parts, split_handles

SECRET = bytes(range(32))
KEY = "0123456789abcdef" * 2
HANDLE = make_handle(SECRET, KEY, 100)
DIGEST = HANDLE[7:39]
MEMORY = Memory(torch.zeros(1, 2), KEY, 8, 3, "fingerprint", (0, 3))

fragments = st.sampled_from(
    [
        HANDLE,
        "[[gmsa:",
        "[[GMSA :",
        "[",
        "]",
        "[[",
        "]]",
        "gmsa",
        ":",
        ":12]]",
        DIGEST,
        DIGEST[:16],
        "0",
        "a",
        " ",
        "\n",
    ]
)
texts = st.lists(fragments | st.text(max_size=5), max_size=12).map("".join)

LOOK_ALIKES = [
    HANDLE,
    HANDLE.upper(),
    HANDLE[:-1],
    HANDLE[:20],
    "[[gmsa:",
    "[[ gmsa :",
    "[ [gmsa:",
    "[\n[g m s a:",
    "[[Gmsa:abc",
    HANDLE.replace("gmsa:", "gmsa: "),
    HANDLE.replace(":100", ":0100"),
    HANDLE[1:],
    HANDLE[2:],
    HANDLE[2:-2],
    HANDLE[7:],
    HANDLE[15:],
    HANDLE[15:].upper(),
    HANDLE[15:-2] + " ] ]",
    "see " + HANDLE[23:],
]
PLAIN = ["", "[[wiki]]", "x[a[10:20]]", "[[1:2]]", "gmsa", "gmsa: a method", "[gmsa]", f"{DIGEST}", f"{DIGEST * 2}:1]]"]


def test_make_handle_is_the_documented_hmac():
    assert hmac.new(SECRET, KEY.encode(), hashlib.sha256).hexdigest()[:32] == DIGEST
    assert HANDLE == f"[[gmsa:{DIGEST}:100]]" == str(Handle(DIGEST, 100))


@pytest.mark.parametrize(
    ("secret", "key", "count"),
    [(b"short", KEY, 1), ("x" * 32, KEY, 1), (SECRET, "key", 1), (SECRET, KEY, -1), (SECRET, KEY, True)],
)
def test_make_handle_checks_its_arguments(secret, key, count):
    with pytest.raises(InputError):
        make_handle(secret, key, count)


@given(st.binary(min_size=16, max_size=40), st.from_regex("[0-9a-f]{32}", fullmatch=True), st.integers(0, 10**10 - 1))
@settings(max_examples=40)
def test_made_handles_are_found_and_split(secret, key, count):
    handle = make_handle(secret, key, count)
    assert find_handles(f"a {handle}{handle}") == [handle, handle]
    assert [str(part) for part in split_handles(f"a {handle}{handle} b")] == ["a ", handle, handle, " b"]


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_look_alikes_become_plain_text(text):
    around = f"before {text} after"
    plain = neutralise(around)
    assert plain != around and plain.replace("-", "") == around
    assert split_handles(plain) == [plain] and neutralise(plain) == plain


@pytest.mark.parametrize("text", [text for text in LOOK_ALIKES if text != HANDLE])
def test_cut_or_altered_handles_raise(text):
    with pytest.raises(MalformedHandleError):
        split_handles(f"before {text} after {HANDLE}")


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_is_left_alone(text):
    assert neutralise(text) == text
    assert split_handles(text) == ([text] if text else [])


@given(texts)
@settings(max_examples=300)
def test_neutralised_text_is_plain_and_stays_so(text):
    plain = neutralise(text)
    assert neutralise(plain) == plain
    assert find_handles(plain) == []
    assert split_handles(plain) == ([plain] if plain else [])


@given(texts)
@settings(max_examples=300)
def test_split_gives_the_text_back_or_raises_and_agrees_with_neutralise(text):
    try:
        parts = split_handles(text)
    except MalformedHandleError:
        assert neutralise(text) != text
        return
    assert "".join(map(str, parts)) == text and "" not in parts
    assert [str(part) for part in parts if isinstance(part, Handle)] == find_handles(text)
    assert (neutralise(text) == text) == (find_handles(text) == [])


@given(st.text())
@settings(max_examples=100)
def test_text_without_brackets_and_digits_is_untouched(text):
    assert neutralise(text.replace("[", "").replace("]", "").replace(":", "")).count("-") == text.count("-")


@given(st.integers(0, len(HANDLE)), texts, texts)
@settings(max_examples=200)
def test_two_neutralised_texts_join_to_no_handle(cut, before, after):
    assert find_handles(neutralise(before + HANDLE[:cut]) + neutralise(HANDLE[cut:] + after)) == []


@pytest.mark.parametrize(
    "text", ["[" * 50_000, "[ " * 50_000, "[[" + " " * 100_000, "a" * 100_000, DIGEST + " " * 99_999]
)
def test_hostile_text_takes_linear_time(text):
    start = time.perf_counter()
    neutralise(text)
    split_handles(text)
    assert time.perf_counter() - start < 2


def unknown(handle):
    raise UnknownMemoryError("handle", expected="a known one", got=handle, remedy="None.")


def test_resolve_parts_keeps_the_order():
    assert resolve_parts(f"a{HANDLE}{HANDLE}b", lambda handle: MEMORY) == ["a", MEMORY, MEMORY, "b"]
    assert resolve_parts("", unknown) == []


def test_a_missing_memory_raises_unless_asked_otherwise():
    text = f"a {HANDLE} b"
    with pytest.raises(UnknownMemoryError):
        resolve_parts(text, unknown)
    with pytest.raises(UnknownMemoryError):
        resolve_parts(text, unknown, on_missing="text")
    with pytest.raises(UnknownMemoryError):
        resolve_parts(text, unknown, on_missing="text", text_of=lambda handle: None)
    assert resolve_parts(text, unknown, on_missing="drop") == ["a  b"]
    assert resolve_parts(HANDLE, unknown, on_missing="drop") == []
    assert resolve_parts(HANDLE, unknown, on_missing="text", text_of=lambda handle: "") == []


def test_the_text_of_a_missing_memory_is_neutralised():
    parts = resolve_parts(f"a {HANDLE} b", unknown, on_missing="text", text_of=lambda handle: f"x {HANDLE}")
    assert parts == [f"a x {neutralise(HANDLE)} b"]


def test_a_dropped_handle_brings_no_halves_together():
    parts = resolve_parts(f"[[{HANDLE}gmsa:", unknown, on_missing="drop")
    assert parts == ["[[gmsa-:"]


def test_the_allow_list_is_kept():
    assert resolve_parts(HANDLE, lambda handle: MEMORY, allowed={HANDLE}) == [MEMORY]
    for allowed in ([], {HANDLE.replace(":100", ":10")}):
        with pytest.raises(HandleNotAllowedError):
            resolve_parts(HANDLE, lambda handle: MEMORY, allowed=allowed)


def test_malformed_handles_raise_whatever_is_missing():
    with pytest.raises(MalformedHandleError):
        resolve_parts(HANDLE[:-1], unknown, on_missing="drop")
    with pytest.raises(InputError, match="on_missing"):
        resolve_parts("", unknown, on_missing="ignore")

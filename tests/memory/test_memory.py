"""Memory: validation, and bytes that come back bit for bit or not at all."""

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import torch as safetensors_torch

import gmsa_rag.memory
from gmsa_rag.errors import InputError, InputTypeError, MemoryFormatError, RateError, ShapeError
from gmsa_rag.memory import Memory, make_handle, memory_key

FINGERPRINT = "f" * 64
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def build(num_tokens=300, rate=8, borders=None, hidden_size=4, dtype=torch.float32, **changes):
    rows = -(-num_tokens // rate) if type(rate) is int and rate else 0
    fields = {
        "soft_tokens": torch.randn(rows, hidden_size, generator=torch.Generator().manual_seed(7)).to(dtype),
        "key": memory_key(FINGERPRINT, 8, "passage"),
        "rate": rate,
        "num_tokens": num_tokens,
        "fingerprint": FINGERPRINT,
        "borders": (0, num_tokens) if borders is None else borders,
    }
    return Memory(**{**fields, **changes})


@st.composite
def memories(draw):
    rate = draw(st.integers(1, 9))
    window = rate * draw(st.integers(1, 4))
    num_tokens = draw(st.integers(0, 40))
    borders = (*range(0, num_tokens, window), num_tokens) if num_tokens else (0, 0)
    shape = (-(-num_tokens // rate), draw(st.integers(1, 5)))
    dtype = draw(st.sampled_from(DTYPES))
    values = draw(st.lists(st.floats(-100, 100, width=16), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    text = draw(st.text(st.characters(exclude_categories=["Cs"])))
    tensor = torch.tensor(values, dtype=dtype).reshape(shape)
    return Memory(tensor, memory_key(text or "f", rate, text), rate, num_tokens, text or "f", borders)


@given(memories())
@settings(max_examples=60, deadline=None)
def test_bytes_come_back_bit_for_bit(memory):
    data = memory.to_bytes()
    again = Memory.from_bytes(data)
    assert again == memory and hash(again) == hash(memory)
    assert again.soft_tokens.dtype == memory.soft_tokens.dtype
    assert again.to_bytes() == data
    assert torch.equal(again.soft_tokens.view(torch.uint8), memory.soft_tokens.view(torch.uint8))


@given(memories(), st.data())
@settings(max_examples=150, deadline=None)
def test_any_flipped_bit_is_found(memory, data):
    whole = bytearray(memory.to_bytes())
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= 1 << data.draw(st.integers(0, 7))
    header = 8 + int.from_bytes(memory.to_bytes()[:8], "little")
    try:
        read = Memory.from_bytes(bytes(whole))
    except MemoryFormatError:
        return
    # Only the spelling of an escape in the header's JSON can change without changing what it says.
    assert position < header and read == memory


@given(memories(), st.data())
@settings(max_examples=40, deadline=None)
def test_any_cut_is_found(memory, data):
    whole = memory.to_bytes()
    with pytest.raises(MemoryFormatError):
        Memory.from_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(MemoryFormatError):
        Memory.from_bytes(whole + b"\x00")


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_foreign_bytes_are_refused(data):
    with pytest.raises(MemoryFormatError):
        Memory.from_bytes(data)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"soft_tokens": torch.zeros(1, 2)}, None),
        ({"other": torch.zeros(1, 2)}, {"gmsa": "{}"}),
        ({"soft_tokens": torch.zeros(1, 2)}, {"gmsa": "{}"}),
        ({"soft_tokens": torch.zeros(1, 2)}, {"gmsa": "[" * 100_000}),
        ({"soft_tokens": torch.zeros(1, 2)}, {"gmsa": '{"format":"gmsa-memory","version":2}'}),
        ({"soft_tokens": torch.zeros(1, 2)}, {"gmsa": '{"format":"gmsa-memory","version":1}'}),
        ({"soft_tokens": torch.zeros(1, 2), "more": torch.zeros(1)}, {"gmsa": "{}"}),
        ({}, {"gmsa": "{}"}),
    ],
)
def test_other_safetensors_are_refused(tensors, metadata):
    with pytest.raises(MemoryFormatError):
        Memory.from_bytes(safetensors_torch.save(tensors, metadata=metadata))


def test_fields_that_disagree_are_refused_even_with_a_right_checksum(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Memory, "__post_init__", lambda self: None)
        data = [build(num_tokens=16, borders=(0, 9)).to_bytes(), build(key="short").to_bytes()]
        data += [build(borders=()).to_bytes(), build(rate=8, soft_tokens=torch.zeros(3)).to_bytes()]
    for damaged in data:
        with pytest.raises(MemoryFormatError):
            Memory.from_bytes(damaged)


def test_values_that_are_not_finite_are_neither_written_nor_read(monkeypatch):
    memory = build(soft_tokens=torch.full((38, 4), float("nan")))
    with pytest.raises(InputError, match="finite"):
        memory.to_bytes()
    monkeypatch.setattr("gmsa_rag.memory.memory._finite", lambda tensor: True)
    data = memory.to_bytes()
    monkeypatch.undo()
    with pytest.raises(MemoryFormatError, match="finite"):
        Memory.from_bytes(data)


def test_bytes_of_a_view_with_gradient_are_plain():
    wide = torch.randn(38, 8, requires_grad=True)
    again = Memory.from_bytes(build(soft_tokens=wide[:, ::2]).to_bytes())
    assert torch.equal(again.soft_tokens, wide.detach()[:, ::2])
    assert not again.soft_tokens.requires_grad and again.soft_tokens.is_contiguous()


def test_reading_other_types_is_a_type_error():
    with pytest.raises(InputTypeError):
        Memory.from_bytes("text")


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_passage_has_no_soft_tokens(dtype):
    memory = build(num_tokens=0, dtype=dtype)
    assert memory.num_soft_tokens == 0 and memory.borders == (0, 0)
    assert Memory.from_bytes(memory.to_bytes()) == memory


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"soft_tokens": torch.zeros(38)}, ShapeError),
        ({"soft_tokens": torch.zeros(37, 4)}, ShapeError),
        ({"soft_tokens": torch.zeros(38, 0)}, ShapeError),
        ({"soft_tokens": torch.zeros(38, 4, dtype=torch.int64)}, InputTypeError),
        ({"soft_tokens": [[0.0]]}, InputTypeError),
        ({"key": "A" * 32}, InputError),
        ({"key": "a" * 31}, InputError),
        ({"rate": 0}, RateError),
        ({"rate": True}, RateError),
        ({"rate": 8.0}, RateError),
        ({"num_tokens": -1}, InputError),
        ({"num_tokens": 301, "borders": (0, 300)}, InputError),
        ({"fingerprint": ""}, InputError),
        ({"fingerprint": 3}, InputTypeError),
        ({"borders": (0, 250, 300)}, InputError),
        ({"borders": (0, 256, 256, 300)}, InputError),
        ({"borders": (0, 256)}, InputError),
        ({"borders": (8, 300)}, InputError),
        ({"borders": (0,)}, InputError),
        ({"borders": ()}, InputError),
        ({"borders": [0, 300]}, InputTypeError),
        ({"borders": (0, 300.0)}, InputTypeError),
    ],
)
def test_fields_are_checked(changes, error):
    with pytest.raises(error):
        build(**changes)


def test_windows_are_kept():
    assert build(borders=(0, 256, 300)).num_soft_tokens == 38
    assert Memory.from_bytes(build(borders=(0, 256, 300)).to_bytes()).borders == (0, 256, 300)


def test_to_casts_and_keeps_the_rest():
    memory = build()
    half = memory.to(dtype=torch.float16)
    assert half.soft_tokens.dtype == torch.float16 and half.key == memory.key
    assert memory.to("cpu") is memory and half != memory
    with pytest.raises(InputTypeError):
        memory.to(dtype=torch.int8)


def test_equality_is_one_truth_value_and_repr_shows_no_contents():
    assert build() == build() and build() != build(rate=16) and build() != "memory"
    assert repr(build()).endswith("rate=8, num_tokens=300, soft_tokens=(38, 4) float32)")
    assert copy.deepcopy(build()) == build() == pickle.loads(pickle.dumps(build()))


def test_key_tells_its_fields_apart():
    keys = [memory_key("a", 1, "b"), memory_key("ab", 1, ""), memory_key("a", 11, "b"), memory_key("a", 1, "1b")]
    assert len(set(keys)) == 4 and all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("", 1, "text"), InputError),
        (("f", 0, "text"), RateError),
        (("f", "8", "text"), RateError),
        (("f", 1, "\ud800"), InputError),
        (("\udfff", 1, "text"), InputError),
        (("f", 1, b"text"), InputTypeError),
    ],
)
def test_key_checks_its_fields(arguments, error):
    with pytest.raises(error):
        memory_key(*arguments)


def test_documented_example_is_real():
    document = (Path(__file__).parents[2] / "docs" / "memory-format.md").read_text()
    key = memory_key(FINGERPRINT, 8, "Rome is in Italy.")
    assert f"`{key}`" in document
    assert f"`{make_handle(bytes(range(32)), key, 1)}`" in document


def test_importing_the_package_loads_neither_torch_nor_faiss():
    code = "import sys, gmsa_rag.memory as m; m.neutralise(''); print({'torch', 'faiss'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_exported_names_are_sorted_and_exist():
    names = gmsa_rag.memory.__all__
    assert names == sorted(names)
    assert all(hasattr(gmsa_rag.memory, name) for name in names) and set(names) <= set(dir(gmsa_rag.memory))
    with pytest.raises(AttributeError, match="nothing"):
        _ = gmsa_rag.memory.nothing

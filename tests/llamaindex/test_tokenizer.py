"""GMSATokenizer: one id for each position, so that budgets are right and no handle is cut."""

import copy
import pickle

import pytest
from llama_index.core import PromptHelper, PromptTemplate, Settings
from llama_index.core.schema import NodeWithScore, TextNode

from gmsa_rag.errors import FingerprintError, MalformedHandleError
from gmsa_rag.inference import sharing
from gmsa_rag.memory.handles import Handle, find_handles
from llama_index.llms.gmsa import GMSATokenizer

TEMPLATE = PromptTemplate("{context_str}\nQuestion: {query_str}\nAnswer:")
HANDLES = [str(Handle(f"{number:032x}", 125)) for number in range(6)]


@pytest.fixture
def counting(wide):
    return GMSATokenizer(gmsa=wide)


def test_a_handle_counts_as_its_soft_tokens(counting, wide, post):
    [found] = post.postprocess_nodes([NodeWithScore(node=TextNode(text="The Danube begins in Germany."))])
    memory = post.memories.resolve(found.text)
    text = f"Read {found.text} and {found.text}."
    prefix = len(wide.codec.prefix)
    assert len(counting(text)) == wide.num_positions(["Read ", memory, " and ", memory, "."]) - prefix
    plain = "Read [[gmsa: aloud </s>"
    assert counting(plain) == wide.codec.encode([plain])[0]
    assert counting("") == []
    assert counting(str(Handle("0" * 32, 0))) == []


def test_a_number_that_anybody_may_write_asks_for_no_more_than_the_window(counting, wide):
    assert len(counting(f"[[gmsa:{'0' * 32}:{wide.decoder_window + 1}]]")) == wide.decoder_window
    assert len(counting(f"[[gmsa:{'0' * 32}:{10**10 - 1}]]")) == wide.decoder_window


def test_it_survives_pickles_and_copies(counting, wide, tmp_path):
    expected = counting(HANDLES[0])
    for again in (copy.copy(counting), copy.deepcopy(counting)):
        assert again(HANDLES[0]) == expected
    wide.save_pretrained(tmp_path)
    again = pickle.loads(pickle.dumps(GMSATokenizer(tmp_path, device="cpu")))
    assert again(HANDLES[0]) == expected
    with pytest.raises(FingerprintError):  # the engine in memory stays behind
        pickle.loads(pickle.dumps(counting))("a")


def test_its_token_reaches_the_loader(monkeypatch, wide):
    asked = []
    monkeypatch.setattr(
        sharing.GMSA, "from_pretrained", lambda model, **settings: asked.append((model, settings)) or wide
    )
    GMSATokenizer("someone/private", revision="v1", dtype="float32", token="secret")("a")
    [(model, settings)] = asked
    assert model == "someone/private"
    assert settings == {"device": "auto", "dtype": "float32", "revision": "v1", "token": "secret"}


@pytest.mark.parametrize(("window", "counts"), [(4096, [6]), (500, [3, 3]), (300, [2, 2, 2]), (190, [1] * 6)])
def test_packing_goes_by_positions_and_cuts_no_handle(counting, window, counts):
    helper = PromptHelper(context_window=window, num_output=10, tokenizer=counting, chunk_overlap_ratio=0)
    packed = helper.repack(TEMPLATE, HANDLES)
    assert [len(find_handles(text)) for text in packed] == counts
    assert [handle for text in packed for handle in find_handles(text)] == HANDLES
    assert all(len(counting(text)) <= window - 10 for text in packed)


def test_a_handle_that_no_window_holds_is_cut_and_raises(counting, llm):
    helper = PromptHelper(context_window=60, num_output=10, tokenizer=counting)
    [packed, *_] = helper.repack(TEMPLATE, HANDLES[:1])
    [cut] = helper.truncate(TEMPLATE, HANDLES[:1])
    assert find_handles(cut) == find_handles(packed) == []
    for text in (cut, packed):
        with pytest.raises(MalformedHandleError):
            llm.complete(text)


def test_it_is_a_setting(counting, own_tokenizer):
    Settings.tokenizer = counting
    assert len(Settings.tokenizer(HANDLES[0])) == 125

"""GMSATokenizer: one id for each position, so that budgets are right and no handle is cut."""

import pytest
from llama_index.core import PromptHelper, PromptTemplate, Settings
from llama_index.core.schema import NodeWithScore, TextNode

from gmsa_rag.errors import MalformedHandleError
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

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from gmsa_rag.errors import ConfigError
from gmsa_rag.inference.prompt import Verbatim, tokenise
from gmsa_rag.inference.tokens import TokenCodec


@pytest.fixture
def codec(tokenizer):
    """Of a tokenizer with special tokens that have no part of their own, as Llama 3's chat template is made of."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken("<|start_header_id|>", special=True)])
    backend.add_tokens([AddedToken("<note>", special=False)])
    return TokenCodec(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>"))


def test_added_special_tokens_are_control_tokens(codec):
    assert "<|start_header_id|>" not in codec.tokenizer.all_special_tokens
    number = codec.tokenizer.convert_tokens_to_ids("<|start_header_id|>")
    assert codec.control_id("<|start_header_id|>") == number
    assert codec.split_control("a<|start_header_id|>user") == [
        ("a", False),
        ("<|start_header_id|>", True),
        ("user", False),
    ]
    assert number in tokenise(["<|start_header_id|>user"], codec)[0]


def test_in_ordinary_text_their_names_stay_text(codec):
    number = codec.control_id("<|start_header_id|>")
    assert number not in tokenise([Verbatim("<|start_header_id|>user")], codec)[0]
    assert number not in codec.encode(["<|start_header_id|>"])[0]


def test_an_added_token_that_is_not_special_is_ordinary_text(codec):
    with pytest.raises(ConfigError, match="control token '<note>'"):
        codec.control_id("<note>")
    assert codec.split_control("a<note>b") == [("a<note>b", False)]


def test_text_that_touches_is_tokenised_as_one_and_memories_part_it(codec):
    kept = object()
    whole = codec.encode(["The Danube", "begins"])
    assert tokenise(["The Dan", "", Verbatim("ube"), kept, kept, "beg", Verbatim("ins")], codec) == [
        [*codec.prefix, *whole[0]], kept, kept, whole[1],
    ]  # fmt: skip
    end = codec.control_id("</s>")
    assert tokenise(["a</s>", "</s>", "b"], codec) == [
        [*codec.prefix, *codec.encode(["a"])[0], end, end, *codec.encode(["b"])[0]]
    ]
    assert tokenise([kept], codec) == [codec.prefix, kept]
    assert tokenise([Verbatim(""), kept], codec) == [codec.prefix, kept]

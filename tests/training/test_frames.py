import pytest

from gmsa_rag.training.frames import BARE, Frame, frame_of, lay_out
from tests.training.chats import LLAMA_3, QWEN, with_template

OURS = Frame("<s><|user|>", "<|assistant|>", " ", "<|user|>")
FRAMES = {
    "qwen": Frame(
        "<|im_start|>system\nYou are Quill.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "",
        "\n<|im_start|>user\n",
    ),
    "llama3": Frame(
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "",
        "<|start_header_id|>user<|end_header_id|>\n\n",
    ),
}


def test_our_tokenizer_has_a_space_before_its_answers(tokenizer):
    assert frame_of(tokenizer) == OURS


@pytest.mark.parametrize(("name", "template"), [("qwen", QWEN), ("llama3", LLAMA_3)])
def test_a_chat_template_tells_what_stands_around_turns(name, template):
    assert frame_of(with_template(template)) == FRAMES[name]


def test_an_answer_may_begin_with_what_the_prompt_does_not_have():
    template = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
        "</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert frame_of(with_template(template)) == Frame("[user]", "</s>[assistant]", "<think></think>", "[user]")


def test_without_a_chat_template_text_goes_on(tokenizer):
    bare = with_template(None)
    assert frame_of(bare) is BARE
    assert lay_out(bare, (("system", "Be brief."), ("user", "Who?"))) == "Be brief.\nWho?"


TURNS = (("system", "Be brief."), ("user", "Who? {x}"))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            QWEN,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho? {x}<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            LLAMA_3,
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
            "<|end_header_id|>\n\nWho? {x}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_turns_are_laid_out_as_the_template_does(template, expected):
    tokenizer = with_template(template)
    assert lay_out(tokenizer, TURNS) == expected
    messages = [{"role": role, "content": content} for role, content in TURNS]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected

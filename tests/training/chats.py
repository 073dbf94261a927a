"""Chat templates with the layouts of well-known families, and a tokenizer that has their markers."""

from transformers import PreTrainedTokenizerFast

from gmsa_rag.training.tokenizer import train_tokenizer
from tests.conftest import TEXT

QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Quill.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_MARKERS = {
    QWEN: (None, "<|im_end|>", ["<|im_start|>", "<|im_end|>"]),
    LLAMA_3: (
        "<|begin_of_text|>", "<|eot_id|>",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ),
}  # fmt: skip


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    """A little tokenizer with a chat template and the control tokens it names."""
    backend = train_tokenizer([TEXT], 400).backend_tokenizer
    begin, end, markers = _MARKERS.get(template or "", ("<s>", "</s>", []))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=begin, eos_token=end, pad_token="<pad>",
        additional_special_tokens=markers, chat_template=template,
    )  # fmt: skip

"""The tokenizer of a base trained from scratch, or cut out of a larger one: byte-level BPE, cased, lossless."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gmsa_rag.errors import ConfigError

BEGIN, END, PAD = "<s>", "</s>", "<pad>"
USER, ASSISTANT, RESTORE = "<|user|>", "<|assistant|>", "<|restore|>"
CONTROL = (BEGIN, END, PAD, USER, ASSISTANT, RESTORE)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|> ' + message['content'] + eos_token }}"
    "{% else %}{{ '<|user|>' + message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE.

    Args:
        texts: What to train on.
        vocab_size: Tokens in all, control tokens included.

    Returns:
        A fast tokenizer with a chat template; every text decodes to itself.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _finish(tokenizer)


def prune_tokenizer(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], vocab_size: int
) -> tuple[PreTrainedTokenizerFast, list[int | None]]:
    """Cut a byte-level BPE to the tokens that texts need most.

    A token counts as often as it occurs, and as often as the tokens that are merged from it, so that none is left
    without its parts. All 256 bytes stay, and what the base changes before it reads is left out: every text decodes to
    itself. The base's control tokens give way to those of `CONTROL`.

    Args:
        tokenizer: A fast tokenizer of the kind.
        texts: What to count in.
        vocab_size: Tokens that are left, control tokens included.

    Returns:
        The smaller tokenizer, and of each of its tokens the id in the old one, None for a new token.

    Raises:
        ConfigError: If the tokenizer is no byte-level BPE, or is to have more tokens than it has, or too few for all
            bytes.
    """
    layout = _byte_level(tokenizer)
    old, merges = layout["model"]["vocab"], [tuple(merge) for merge in layout["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    parts, always = _parts(merges, alphabet), [*CONTROL, *alphabet]
    if not len(always) <= vocab_size <= len(always) + len(parts):
        raise ConfigError(
            "vocab_size", expected=f"{len(always)} to {len(always) + len(parts)}, as in the base", got=str(vocab_size),
            remedy="Change the recipe, or choose another base.",
        )  # fmt: skip
    most = _needed(parts, Tokenizer.from_str(json.dumps(layout)), texts)[: vocab_size - len(always)]
    kept = [*always, *sorted(most, key=old.__getitem__)]
    there = {*alphabet, *most}
    layout["model"].update(
        vocab={token: i for i, token in enumerate(kept)},
        merges=[[left, right] for left, right in merges if {left, right, left + right} <= there],
    )
    smaller = Tokenizer.from_str(json.dumps(layout))
    smaller.add_special_tokens(list(CONTROL))
    sources = {**old, BEGIN: tokenizer.bos_token_id, END: tokenizer.eos_token_id}
    control = set(CONTROL) - {BEGIN, END}
    return _finish(smaller), [None if token in control else sources.get(token) for token in kept]


def _parts(merges: Iterable[tuple[str, str]], alphabet: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The two parts that each token is first made of, in the order they are made; tokenizers may list more ways."""
    parts: dict[str, tuple[str, str]] = {}
    there = set(alphabet)
    for left, right in merges:
        if left + right not in there and {left, right} <= there:
            parts[left + right] = (left, right)
            there.add(left + right)
    return parts


def _needed(parts: dict[str, tuple[str, str]], plain: Tokenizer, texts: Iterable[str]) -> list[str]:
    """The tokens that have parts, those most needed first, and never one before its parts."""
    counts = Counter(token for text in texts for token in plain.encode(text).tokens)
    for made in reversed(parts):
        for part in parts[made]:
            counts[part] += counts[made]
    return sorted(parts, key=lambda token: -counts[token])


def _byte_level(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer's JSON without all that changes a text, or ConfigError if it is no byte-level BPE."""
    text = getattr(tokenizer, "backend_tokenizer", Tokenizer(models.BPE())).to_str()
    layout: dict[str, Any] = json.loads(text, object_hook=_without_prefix_space)
    if layout["model"]["type"] != "BPE" or (layout.get("decoder") or {}).get("type") != "ByteLevel":
        raise ConfigError(
            "tokenizer", expected="a byte-level BPE with a fast form", got=type(tokenizer).__name__,
            remedy="Choose a base with such a tokenizer, as SmolLM2, Llama 3 or Qwen3.",
        )  # fmt: skip
    cleared = dict.fromkeys(("normalizer", "post_processor", "truncation", "padding"))
    return {**layout, **cleared, "added_tokens": []}


def _without_prefix_space(part: dict[str, Any]) -> dict[str, Any]:
    return {**part, "add_prefix_space": False} if part.get("add_prefix_space") is True else part


def _finish(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Put the beginning of a text in front, name the control tokens and add the chat template."""
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, RESTORE],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )

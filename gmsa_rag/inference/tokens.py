"""Text to token ids and back, with control tokens kept apart from ordinary text."""

import hashlib
import re
from collections.abc import Sequence

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gmsa_rag.checks import check_text
from gmsa_rag.errors import CheckpointError, ConfigError


class TokenCodec:
    """Tokenises passages and prompts the same way everywhere. Safe to share between threads.

    Passages and user input are ordinary text: a control token's name in them, such as `</s>`, stays text. Only prompt
    templates and chat templates may hold control tokens.

    Args:
        tokenizer: A fast tokenizer.

    Attributes:
        tokenizer: It, as it was given.
        prefix: Token ids that stand before a prompt.
        end: Id of the token that ends a text.
        identity: Digest of the tokenizer, 64 hex digits.

    Raises:
        CheckpointError: If the tokenizer has no fast form.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise CheckpointError(
                "tokenizer",
                expected="a fast tokenizer (tokenizer.json)",
                got=type(tokenizer).__name__,
                remedy="Convert it with transformers' AutoTokenizer and save it again.",
            )
        self.tokenizer = tokenizer
        # A copy of our own: truncation, padding and special-token settings of the shared object are mutable state.
        self._plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain.no_padding()
        self._plain.no_truncation()
        self._plain.encode_special_tokens = True
        self._ids = _control_ids(tokenizer)
        names = sorted(self._ids, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)) if names else r"(?!)")
        self.prefix: list[int] = _prefix(tokenizer)
        self.end: int = _end(tokenizer)
        self.identity = hashlib.sha256(self._plain.to_str().encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of ordinary texts, without special tokens.

        Raises:
            InputTypeError: If a text is no str.
            InputError: If a text is not valid Unicode (lone surrogates).
        """
        for text in texts:
            check_text(text)
        return [encoding.ids for encoding in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def split_control(self, text: str) -> list[tuple[str, bool]]:
        """Cut text at control tokens: (piece, whether it is a control token)."""
        pieces, end = [], 0
        for match in self._control.finditer(text):
            pieces += [(text[end : match.start()], False), (match.group(), True)]
            end = match.end()
        return [(piece, control) for piece, control in [*pieces, (text[end:], False)] if piece]

    def control_id(self, name: str) -> int:
        """Id of a control token, or ConfigError if the tokenizer has none of this name."""
        if name not in self._ids:
            raise ConfigError(
                f"control token {name!r}",
                expected=f"one of {sorted(self._ids)}",
                got="none of this name",
                remedy="Name the tokenizer's own control tokens.",
            )
        return self._ids[name]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, control tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Control tokens: those with a part, such as the end of a text, and all that were added as special.

    Chat templates are made of the latter, such as Llama 3's `<|start_header_id|>`, which has no part of its own.
    """
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    added = ((token.content, i) for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return {**dict(added), **dict(named)}


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            "tokenizer", expected="an end-of-sequence token", got="none", remedy="Set the tokenizer's eos_token."
        )
    return int(tokenizer.eos_token_id)


def _prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts in front of a prompt, usually the one beginning-of-sequence token."""
    ids: list[int] = tokenizer("", add_special_tokens=True)["input_ids"]
    return [i for i in ids if i != tokenizer.eos_token_id or i == tokenizer.bos_token_id]

"""Restoration: how much of a passage its memory gives back, by rate and length."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gmsa_rag.checks import check_rate
from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.metrics import bleu, check_text_metrics, mean, prefix_share, rouge_l
from gmsa_rag.evaluation.progress import progress_bar
from gmsa_rag.inference.batching import token_budget_batches
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Part, check_fits, num_positions, restore_length, restore_prompt, tokenise
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.memory.memory import Memory
from gmsa_rag.modeling.alignment import backbone_of
from gmsa_rag.training.objective import head_logits

FORCED_POSITIONS = 4_096


@dataclass(frozen=True)
class RestorationRow:
    """How well passages of one length are restored at one rate. All shares are 0 to 1, higher is better.

    Attributes:
        window: Tokens of each passage.
        rate: Tokens per soft token.
        num_samples: Passages.
        token_accuracy: Share of tokens ranked first, given the memory and all true tokens before (teacher-forced).
        other_token_accuracy: The same from the memory of another passage: what the language model guesses anyway.
        bleu: Corpus BLEU of the greedy restorations.
        rouge_l: Mean ROUGE-L (F) of the greedy restorations.
        prefix_match: Mean share of leading tokens that are right before the first error, in greedy restorations.
        exact_match: Share of greedy restorations that are the passage, character for character.
    """

    window: int
    rate: int
    num_samples: int
    token_accuracy: float
    other_token_accuracy: float
    bleu: float
    rouge_l: float
    prefix_match: float
    exact_match: float


def evaluate_restoration(
    gmsa: GMSA,
    texts: Sequence[str],
    *,
    windows: Sequence[int] = (64, 128, 256),
    rates: Sequence[int] = (2, 4, 8, 16),
    samples: int = 100,
    seed: int = 0,
) -> list[RestorationRow]:
    """Restore passages cut from documents, teacher-forced and greedily.

    Args:
        gmsa: The checkpoint.
        texts: Documents nobody trained on.
        windows: Lengths of the passages in tokens; the same passages are used at every rate.
        rates: Rates to compress at.
        samples: Passages of each length, >= 2, since each is also read with the memory of another.
        seed: Decides which passages are cut.

    Returns:
        A row per window and rate, in order.

    Raises:
        InputError: If the texts do not hold that many passages, or an argument makes no sense.
        PromptTooLongError: If a passage and its memory do not fit into the decoder.
        DependencyError: If sacrebleu or rouge-score is missing.
    """
    check_text_metrics()
    _check_arguments(windows, rates, samples)
    rows = []
    with progress_bar() as bar:
        task = bar.add_task("restoration", total=len(windows) * len(rates))
        for window in windows:
            passages = cut_passages(gmsa.codec, texts, window, samples, seed)
            for rate in rates:
                rows.append(_evaluate_cell(gmsa, passages, window, rate))
                bar.advance(task)
    return rows


def cut_passages(codec: TokenCodec, texts: Sequence[str], size: int, samples: int, seed: int) -> list[list[int]]:
    """Cut passages of exactly so many tokens, one per document as long as the documents last, then a next one of each.

    Args:
        codec: The tokenizer.
        texts: Documents.
        size: Tokens of a passage, >= 1.
        samples: Passages.
        seed: Decides the order of the documents and where the first passage of each starts.

    Returns:
        Token ids of the passages; decoded and encoded again they are the same. None overlap and no two are equal.

    Raises:
        InputError: If there are too few.
    """
    rng = random.Random(f"{seed} {size}")
    cuts = [_cut_document(codec, text, size, rng) for text in rng.sample(list(texts), len(texts))]
    found = [list(ids) for ids in islice(_distinct(_in_turn(cuts)), samples)]
    if len(found) < samples:
        raise InputError(
            "texts",
            expected=f"{samples} passages of {size} tokens in them",
            got=str(len(found)),
            remedy="Evaluate on more text, shorter windows or fewer samples.",
        )
    return found


@torch.inference_mode()
def forced_tokens(gmsa: GMSA, prompts: Sequence[Sequence[Part]], targets: Sequence[Sequence[int]]) -> list[list[int]]:
    """The token that the decoder ranks first at each place of a target, given prompt and all true tokens before.

    Args:
        gmsa: The checkpoint.
        prompts: Parts, str or Memory.
        targets: Token ids that follow each prompt, at least one.

    Returns:
        Token ids, as many as in each target.

    Raises:
        PromptTooLongError: If a prompt and its target do not fit into the decoder.
    """
    heads = [tokenise(parts, gmsa.codec) for parts in prompts]
    # The last token of a target is predicted and never read.
    lengths = [num_positions(head) + len(target) - 1 for head, target in zip(heads, targets, strict=True)]
    check_fits(max(lengths, default=0), gmsa.decoder_window)
    predicted: list[list[int]] = [[]] * len(heads)
    for batch in token_budget_batches(lengths, FORCED_POSITIONS):
        hidden = _read(gmsa, [[*heads[index], list(targets[index][:-1])] for index in batch])
        for row, index in enumerate(batch):
            learned = hidden[row, lengths[index] - len(targets[index]) : lengths[index]]
            predicted[index] = head_logits(gmsa.decoder, learned).argmax(dim=-1).tolist()
    return predicted


def restore_all(gmsa: GMSA, memories: Sequence[Memory]) -> list[str]:
    """What `GMSA.restore` gives for each memory, in batches."""
    windows = [(row, window) for row, memory in enumerate(memories) for window in memory.windows()]
    texts = [""] * len(windows)
    for size in sorted({window.num_tokens for _, window in windows}):
        chosen = [index for index, (_, window) in enumerate(windows) if window.num_tokens == size]
        prompts = [restore_prompt(gmsa.config, windows[index][1]) for index in chosen]
        generated = gmsa.generate(prompts, max_new_tokens=restore_length(size))
        for index, text in zip(chosen, generated, strict=True):
            texts[index] = text
    restored = [""] * len(memories)
    for (row, _), text in zip(windows, texts, strict=True):
        restored[row] += text
    return restored


def token_accuracy(gmsa: GMSA, memories: Sequence[Memory], passages: Sequence[Sequence[int]]) -> float:
    """Share of the passages' tokens that the decoder ranks first, teacher-forced window by window; the end not counted.

    Args:
        gmsa: The checkpoint.
        memories: What is read, one per passage and cut at the same borders.
        passages: Token ids of what should be restored.
    """
    prompts, targets = [], []
    for memory, ids in zip(memories, passages, strict=True):
        for window, (start, end) in zip(memory.windows(), pairwise(memory.borders), strict=True):
            prompts.append(restore_prompt(gmsa.config, window))
            targets.append(list(ids[start:end]))
    predicted = forced_tokens(gmsa, prompts, targets)
    right = sum(
        found == true
        for row, target in zip(predicted, targets, strict=True)
        for found, true in zip(row, target, strict=True)
    )
    return right / sum(map(len, targets))


def _evaluate_cell(gmsa: GMSA, passages: Sequence[list[int]], window: int, rate: int) -> RestorationRow:
    texts = [gmsa.codec.decode(ids) for ids in passages]
    memories = gmsa.compress(texts, rate)
    others = [*memories[-1:], *memories[:-1]]
    restored = restore_all(gmsa, memories)
    pairs = list(zip(gmsa.codec.encode(restored), passages, strict=True))
    return RestorationRow(
        window=window,
        rate=rate,
        num_samples=len(passages),
        token_accuracy=token_accuracy(gmsa, memories, passages),
        other_token_accuracy=token_accuracy(gmsa, others, passages),
        bleu=bleu(restored, texts),
        rouge_l=rouge_l(restored, texts),
        prefix_match=mean([prefix_share(found, truth) for found, truth in pairs]),
        exact_match=mean([float(text == truth) for text, truth in zip(restored, texts, strict=True)]),
    )


def _read(gmsa: GMSA, rows: Sequence[Sequence[Sequence[int] | Memory]]) -> Tensor:
    """Normed hidden states after reading token ids and memories, (batch, max_length, hidden_size)."""
    table, device, dtype = gmsa.decoder.get_input_embeddings(), gmsa.decoder.device, gmsa.decoder.dtype
    embedded = []
    for row in rows:
        pieces = [
            part.soft_tokens.to(device, dtype) if isinstance(part, Memory) else table(torch.tensor(part, device=device))
            for part in row
            if isinstance(part, Memory) or part
        ]
        embedded.append(torch.cat(pieces))
    # Causal layers cannot see what is padded on the right, so no mask is needed.
    padded = pad_sequence(embedded, batch_first=True)
    hidden: Tensor = backbone_of(gmsa.decoder)(inputs_embeds=padded, use_cache=False).last_hidden_state
    return hidden


def _in_turn(cuts: list[Iterator[list[int]]]) -> Iterator[list[int]]:
    """One of each iterator, then one more of each that lasts."""
    while cuts:
        lasting = []
        for cut in cuts:
            if (passage := next(cut, None)) is not None:
                yield passage
                lasting.append(cut)
        cuts = lasting


def _distinct(passages: Iterator[list[int]]) -> Iterator[tuple[int, ...]]:
    """Each passage the first time it comes."""
    seen: set[tuple[int, ...]] = set()
    for passage in map(tuple, passages):
        if passage not in seen:
            seen.add(passage)
            yield passage


def _cut_document(codec: TokenCodec, text: str, size: int, rng: random.Random) -> Iterator[list[int]]:
    """Passages of a document that do not overlap, from a random place on."""
    ids = codec.encode([text])[0]
    at = rng.randint(0, max(len(ids) - size, 0))
    while at + size <= len(ids):
        passage = ids[at : at + size]
        # A passage that starts or ends within a word or character may not be what its text is tokenised to.
        same = codec.encode([codec.decode(passage)])[0] == passage
        if same:
            yield passage
        at += size if same else 1


def _check_arguments(windows: Sequence[int], rates: Sequence[int], samples: int) -> None:
    for rate in rates:
        check_rate(rate)
    if not rates or not windows or min(windows) < 1 or samples < 2:
        raise InputError(
            "restoration",
            expected="windows >= 1, rates and at least 2 samples",
            got=f"windows {list(windows)}, rates {list(rates)}, {samples} samples",
            remedy="Change the arguments.",
        )

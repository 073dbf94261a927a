"""Restoration: how much of a passage its memory gives back, by rate and length."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gmsa_rag.checks import check_rate
from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.metrics import (
    bleu,
    bleu_interval,
    bootstrap_interval,
    check_text_metrics,
    mean,
    prefix_share,
    rouge,
)
from gmsa_rag.evaluation.numbers_and_names import names_restored, numbers_restored
from gmsa_rag.evaluation.passages import cut_passages, of_others
from gmsa_rag.evaluation.progress import progress_bar
from gmsa_rag.inference.batching import token_budget_batches
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Part, check_fits, num_positions, restore_length, restore_prompt, tokenise
from gmsa_rag.memory.memory import Memory
from gmsa_rag.modeling.alignment import backbone_of
from gmsa_rag.training.objective import head_logits

FORCED_POSITIONS = 4_096


@dataclass(frozen=True)
class RestorationRow:
    """How well passages of one length are restored at one rate. All shares are 0 to 1, higher is better.

    The fields `other_*` are the same figures from the memory of another passage: what the language model guesses, and
    what any two texts have in common. Intervals are 95 % bootstrap intervals over passages.

    Attributes:
        window: Tokens of each passage.
        rate: Tokens per soft token.
        num_samples: Passages.
        token_accuracy: Share of tokens ranked first, given the memory and all true tokens before (teacher-forced).
        token_accuracy_interval: Its interval.
        bleu: Corpus BLEU of the greedy restorations.
        bleu_interval: Its interval.
        rouge_1: Mean ROUGE-1 (F) of the greedy restorations.
        rouge_2: Mean ROUGE-2 (F).
        rouge_l: Mean ROUGE-L (F).
        prefix_match: Mean share of leading tokens that are right before the first error, in greedy restorations.
        exact_match: Share of greedy restorations that are the passage, character for character.
        numbers_exact: Share of the passages' numbers that are in the greedy restoration; None if they hold none.
        names_exact: The same of the passages' names.
        other_token_accuracy: From another passage's memory.
        other_bleu: From another passage's memory.
        other_rouge_1: From another passage's memory.
        other_rouge_2: From another passage's memory.
        other_rouge_l: From another passage's memory.
        other_prefix_match: From another passage's memory.
        other_exact_match: From another passage's memory.
        other_numbers_exact: From another passage's memory.
        other_names_exact: From another passage's memory.
        rouge_l_interval: Interval of that figure.
        prefix_match_interval: Interval of that figure.
        exact_match_interval: Interval of that figure.
        numbers_exact_interval: Interval of that figure; None with it.
        names_exact_interval: Interval of that figure; None with it.
        other_token_accuracy_interval: Interval of that figure.
        other_bleu_interval: Interval of that figure.
        other_rouge_l_interval: Interval of that figure.
        other_prefix_match_interval: Interval of that figure.
        other_exact_match_interval: Interval of that figure.
        other_numbers_exact_interval: Interval of that figure; None with it.
        other_names_exact_interval: Interval of that figure; None with it.
    """

    window: int
    rate: int
    num_samples: int
    token_accuracy: float
    token_accuracy_interval: tuple[float, float]
    bleu: float
    bleu_interval: tuple[float, float]
    rouge_1: float
    rouge_2: float
    rouge_l: float
    prefix_match: float
    exact_match: float
    numbers_exact: float | None
    names_exact: float | None
    other_token_accuracy: float
    other_bleu: float
    other_rouge_1: float
    other_rouge_2: float
    other_rouge_l: float
    other_prefix_match: float
    other_exact_match: float
    other_numbers_exact: float | None
    other_names_exact: float | None
    rouge_l_interval: tuple[float, float] | None = None
    prefix_match_interval: tuple[float, float] | None = None
    exact_match_interval: tuple[float, float] | None = None
    numbers_exact_interval: tuple[float, float] | None = None
    names_exact_interval: tuple[float, float] | None = None
    other_token_accuracy_interval: tuple[float, float] | None = None
    other_bleu_interval: tuple[float, float] | None = None
    other_rouge_l_interval: tuple[float, float] | None = None
    other_prefix_match_interval: tuple[float, float] | None = None
    other_exact_match_interval: tuple[float, float] | None = None
    other_numbers_exact_interval: tuple[float, float] | None = None
    other_names_exact_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class _TextScores:
    """What greedy restorations score; the fields are those of `RestorationRow`."""

    bleu: float
    rouge_1: float
    rouge_2: float
    rouge_l: float
    prefix_match: float
    exact_match: float
    numbers_exact: float | None
    names_exact: float | None
    bleu_interval: tuple[float, float]
    rouge_l_interval: tuple[float, float]
    prefix_match_interval: tuple[float, float]
    exact_match_interval: tuple[float, float]
    numbers_exact_interval: tuple[float, float] | None
    names_exact_interval: tuple[float, float] | None


def evaluate_restoration(
    gmsa: GMSA,
    texts: Sequence[str],
    *,
    windows: Sequence[int] = (128, 256, 512),
    rates: Sequence[int] = (2, 4, 8, 16, 32),
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
        seed: Decides which passages are cut, and the bootstrap.

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
                rows.append(_evaluate_cell(gmsa, passages, window, rate, seed))
                bar.advance(task)
    return rows


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


def token_accuracies(gmsa: GMSA, memories: Sequence[Memory], passages: Sequence[Sequence[int]]) -> list[float]:
    """Share of each passage's tokens that the decoder ranks first, teacher-forced window by window; no end is counted.

    Args:
        gmsa: The checkpoint.
        memories: What is read, one per passage and cut at the same borders.
        passages: Token ids of what should be restored.

    Returns:
        A share a passage, 0 to 1, higher is better.
    """
    prompts, targets, rows = [], [], []
    for row, (memory, ids) in enumerate(zip(memories, passages, strict=True)):
        for window, (start, end) in zip(memory.windows(), pairwise(memory.borders), strict=True):
            prompts.append(restore_prompt(gmsa.config, window))
            targets.append(list(ids[start:end]))
            rows.append(row)
    right = [0] * len(passages)
    for row, found, target in zip(rows, forced_tokens(gmsa, prompts, targets), targets, strict=True):
        right[row] += sum(token == true for token, true in zip(found, target, strict=True))
    return [count / len(ids) for count, ids in zip(right, passages, strict=True)]


def _evaluate_cell(gmsa: GMSA, passages: Sequence[list[int]], window: int, rate: int, seed: int) -> RestorationRow:
    texts = [gmsa.codec.decode(ids) for ids in passages]
    memories = gmsa.compress(texts, rate)
    accuracies = token_accuracies(gmsa, memories, passages)
    restored = restore_all(gmsa, memories)
    own = _score_texts(gmsa, restored, texts, passages, seed)
    # A memory is restored to the same text whichever passage is asked for, so nothing is generated anew for the others.
    other = _score_texts(gmsa, of_others(restored), texts, passages, seed)
    other_accuracies = token_accuracies(gmsa, of_others(memories), passages)
    return RestorationRow(
        window=window,
        rate=rate,
        num_samples=len(passages),
        token_accuracy=mean(accuracies),
        token_accuracy_interval=bootstrap_interval(accuracies, seed),
        **asdict(own),
        other_token_accuracy=mean(other_accuracies),
        other_token_accuracy_interval=bootstrap_interval(other_accuracies, seed),
        **{f"other_{name}": value for name, value in asdict(other).items()},
    )


def _score_texts(
    gmsa: GMSA, restored: Sequence[str], texts: Sequence[str], passages: Sequence[list[int]], seed: int
) -> _TextScores:
    first, second, longest = rouge(restored, texts)
    prefixes = [prefix_share(ids, truth) for ids, truth in zip(gmsa.codec.encode(restored), passages, strict=True)]
    exact = [float(text == truth) for text, truth in zip(restored, texts, strict=True)]
    numbers, names = numbers_restored(restored, texts), names_restored(restored, texts)
    return _TextScores(
        bleu=bleu(restored, texts),
        rouge_1=mean(first),
        rouge_2=mean(second),
        rouge_l=mean(longest),
        prefix_match=mean(prefixes),
        exact_match=mean(exact),
        numbers_exact=numbers.share,
        names_exact=names.share,
        bleu_interval=bleu_interval(restored, texts, seed),
        rouge_l_interval=bootstrap_interval(longest, seed),
        prefix_match_interval=bootstrap_interval(prefixes, seed),
        exact_match_interval=bootstrap_interval(exact, seed),
        numbers_exact_interval=numbers.interval(seed),
        names_exact_interval=names.interval(seed),
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

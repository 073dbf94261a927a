"""Batches of similar length under a token budget."""

from collections.abc import Sequence


def token_budget_batches(lengths: Sequence[int], budget: int, *, padded: bool = True) -> list[list[int]]:
    """Group items so that no batch exceeds a budget, longest first.

    Args:
        lengths: Tokens of each item, >= 0.
        budget: Tokens a batch may hold; an item longer than it gets a batch of its own.
        padded: Whether all rows of a batch count as long as its longest; if not, tokens alone count.

    Returns:
        Lists of indices into `lengths`; each index occurs once, and within a batch lengths fall.

    Example:
        >>> token_budget_batches([2, 9, 8, 1], budget=18)
        [[1, 2], [0, 3]]
        >>> token_budget_batches([2, 9, 8, 1], budget=19, padded=False)
        [[1, 2, 0], [3]]
    """
    batches: list[list[int]] = []
    held = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        held += lengths[batches[-1][0]] if padded and batches else lengths[index]
        if batches and held <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            held = lengths[index]
    return batches

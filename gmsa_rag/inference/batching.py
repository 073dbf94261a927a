"""Batches of similar length under a token budget."""

from collections.abc import Sequence


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group items so that no padded batch exceeds a budget, longest first.

    Args:
        lengths: Tokens of each item, >= 0.
        budget: Padded tokens a batch may hold; an item longer than it gets a batch of its own.

    Returns:
        Lists of indices into `lengths`; each index occurs once, and within a batch lengths fall.

    Example:
        >>> token_budget_batches([2, 9, 8, 1], budget=18)
        [[1, 2], [0, 3]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches

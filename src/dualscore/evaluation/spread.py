"""A choice of images that is spread evenly, and lies in every larger one."""

from dualscore.noise import GOLDEN_RATIO


def nested_choice(total: int, count: int) -> frozenset[int]:
    """`count` of `total` ordinals, spread evenly, and a part of every larger choice.

    Those whose multiples of the golden ratio have the smallest fractional parts.
    """
    return frozenset(sorted(range(total), key=lambda j: (j + 1) * GOLDEN_RATIO % 1.0)[:count])

"""What to do where a batch does not fit into a device's memory."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def advice(batch: int, accumulate: int) -> str:
    """What may fit, for people: the next smaller equal parts of a device's batch; nothing is measured.

    Args:
        batch: images a device, a step.
        accumulate: parts that they were cut into, which do not fit.

    Returns:
        A sentence.
    """
    more = next((parts for parts in range(accumulate + 1, batch + 1) if batch % parts == 0), None)
    if more is None:
        return "make the network smaller (network.width) or the images"
    return f"trainer.accumulate={more} makes the same step in parts of {batch // more}"

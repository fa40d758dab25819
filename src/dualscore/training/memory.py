"""What to do where a batch does not fit into a device's memory."""

from collections.abc import Callable

import torch

from dualscore.training.module import DualScoreModule


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def images_that_fit(peak: Callable[[int], int], total: int) -> int:
    """How many images a device can take at once.

    Args:
        peak: the memory that a step with so many images takes at most, in bytes, weights included.
        total: the device's memory, in bytes.

    Returns:
        The number, 0 where not even one fits.
    """
    one, two = peak(1), peak(2)
    if one > total:
        return 0
    return 1 + (total - one) // max(1, two - one)


def parts_that_fit(batch: int, fits: int, accumulate: int) -> int | None:
    """The fewest equal parts, more than now, of a device's batch that fit.

    Args:
        batch: images a device, a step.
        fits: images that fit at once.
        accumulate: the parts now, which do not fit.

    Returns:
        `trainer.accumulate`, or None where single images do not fit.
    """
    return next((k for k in range(accumulate + 1, batch + 1) if batch % k == 0 and batch // k <= fits), None)


def gpu_peak(module: DualScoreModule) -> Callable[[int], int]:
    """A measurement for `images_that_fit`: steps on noise, on the module's GPU."""

    def peak(images: int) -> int:
        module.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        clean = torch.rand(images, *module.image_shape, device=module.device, dtype=module.working_dtype)
        variance = torch.full_like(clean[:, 0, 0, 0], module.t_range[1])
        losses = module.loss(module.model, clean, torch.randn_like(clean), variance, 1.0)
        losses.total.mean().backward()  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated()

    return peak


def advice(module: DualScoreModule, batch: int, accumulate: int) -> str:
    """What would fit, for people: measured on a GPU, elsewhere the next smaller parts.

    Args:
        module: what was trained.
        batch: images a device, a step.
        accumulate: parts that they were cut into.

    Returns:
        A sentence.
    """
    if module.device.type == "cuda":
        total = int(0.9 * torch.cuda.get_device_properties(module.device).total_memory)
        fits = images_that_fit(gpu_peak(module), total)
        found = f"about {fits} fit at once; "
    else:
        fits, found = batch // accumulate - 1, ""
    more = parts_that_fit(batch, fits, accumulate)
    if more is None:
        return f"{found}make the network smaller (network.width) or the images"
    return f"{found}trainer.accumulate={more} makes the same step in parts of {batch // more}"

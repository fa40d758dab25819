"""Which device computes, and how a GPU rounds single-precision products."""

from typing import TypeVar

import torch
from torch import nn

from dualscore.errors import ConfigError

M = TypeVar("M", bound=nn.Module)


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def find_device(name: str) -> torch.device:
    """A device by its name, as cpu or cuda:1; ConfigError, naming --device, if it does not work."""
    try:
        device = torch.device(name)
        # Double precision, which sums are taken in, a Mac's GPU has not; one without numbers has none at all.
        torch.zeros(1, device=device, dtype=torch.float64).item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:  # without CUDA it asserts
        raise ConfigError(f"--device {name}: {str(error).splitlines()[0]:.200}") from error
    return device


def allow_tf32(allowed: bool) -> None:
    """Let matrix products and convolutions of a GPU round to TF32, 10 bits, or keep them at 23.

    PyTorch allows it for convolutions unless told otherwise, which single precision should not mean.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def to_measure(model: M, device: str) -> M:
    """A model on the device of that name, whose products are rounded no more than single precision is."""
    allow_tf32(False)
    return model.to(find_device(device))

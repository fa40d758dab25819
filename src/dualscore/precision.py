"""How a GPU rounds single-precision products."""

import torch


def allow_tf32(allowed: bool) -> None:
    """Let matrix products and convolutions of a GPU round to TF32, 10 bits, or keep them at 23.

    PyTorch allows it for convolutions unless told otherwise, which single precision should not mean.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed

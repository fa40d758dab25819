"""What `dualscore.measure` costs beside the network itself: evaluations a second, as a share of plain ones.

    python -m benchmarks.denoiser_rate [--pixels 32] [--width 64] [--images 128]

Plain forward passes and the measurement take turns in one process, on one thread, by processor time.
"""

import argparse
import time

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

import dualscore
from dualscore.adapters import of_diffusers


class Counted(torch.nn.Module):
    """A network that counts the images that it is given."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.images = network, 0
        self.config = network.config

    def forward(self, images: Tensor, steps: Tensor) -> object:
        """As the network does."""
        self.images += len(images)
        return self.network(images, steps)


def main() -> None:
    """Print the share, of three turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    side, size = options.pixels, options.batch_size
    network = UNet2DModel(
        sample_size=side, block_out_channels=(options.width, 2 * options.width), norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    ).eval()  # fmt: skip
    counted = Counted(network)
    scheduler = DDPMScheduler(prediction_type="sample")
    images = torch.randint(0, 256, (options.images, 3, side, side), dtype=torch.uint8)
    noisy, step = torch.randn(size, 3, side, side), torch.full((size,), 500)
    shares = []
    for turn in range(4):
        counted.images, start = 0, time.process_time()
        dualscore.measure(
            of_diffusers(counted, scheduler), images, strata=16, checked=2, batch_size=size, psnr=(-10,)
        )
        measured = counted.images / (time.process_time() - start)
        start, number = time.process_time(), max(2, counted.images // size)
        with torch.no_grad():
            for _ in range(number):
                network(noisy, step)
        plain = number * size / (time.process_time() - start)
        if turn:  # the first is a warm-up
            shares.append(measured / plain)
        print(f"measure {measured:.1f}, plain {plain:.1f} evaluations/s: {measured / plain:.3f}")
    weights = sum(p.numel() for p in network.parameters())
    print(f"{weights:,} weights, {side}×{side}×3: {min(shares):.3f} to {max(shares):.3f} of plain passes")


if __name__ == "__main__":
    main()

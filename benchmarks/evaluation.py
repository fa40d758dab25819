"""How fast the paper's protocol is against the bare forward pass: a ratio, side by side in one run.

    make bench-evaluation

The network has the paper's width, on the demo's 16×16 patches. Both see the same images in the same batches.
The bare pass has them in memory; the evaluation reads shards, estimates log Z and keeps every row on disk.
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from lightning.fabric import Fabric
from rich.console import Console

from dualscore.assemble import build
from dualscore.evaluation.plan import normalizer_count
from dualscore.evaluation.run import Session
from dualscore.evaluation.stages import Subject, clean_energies, noisy_energies
from dualscore.experiment import load_experiment
from dualscore.images import to_pixels

IMAGES, REPEATS = 2048, 5


def main() -> None:
    """Print images a second of both and the median ratio with its range."""
    config = load_experiment("patches_dual", ["network.width=64"])
    module, datamodule = build(config)
    model = module.evaluated.requires_grad_(False).eval()
    count = min(IMAGES, datamodule.counts["val"])
    batches = [
        to_pixels(batch.image, config.data.channels)
        for batch in datamodule.evenly_spaced("val", count, config.evaluate.batch_size)
    ]
    subject = Subject(
        model, module.prior, None, quantized=True, dequantize=False, t_range=module.t_range, seed=0
    )
    stages = [
        noisy_energies([config.noise.t_max], normalizer_count(count), "normalizer"),
        clean_energies("val", count, "paper"),
    ]
    folder = Path(tempfile.mkdtemp())
    fabric = Fabric(accelerator="cpu")

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch, torch.zeros(len(batch)))

    def paper() -> None:
        session = Session(fabric, subject, datamodule, config.evaluate, folder, {}, 0, Console(quiet=True))
        for stage in stages:
            session.run(stage)
        shutil.rmtree(folder)

    ratios = []
    for repeat in range(REPEATS + 1):
        times = []
        for work in (bare, paper) if repeat % 2 else (paper, bare):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        first, second = times if repeat % 2 else times[::-1]
        if repeat:  # the first round warms up
            ratios.append(first / second)
            print(f"bare {count / first:,.0f} images/s, paper {count / second:,.0f}: {ratios[-1]:.3f}")
    print(f"paper / bare, median of {REPEATS}: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()

"""How fast the paper's protocol is against the bare forward pass, on the demo's 16×16 patches.

Both see the same images in the same batches. The bare pass has them in memory; the evaluation reads shards,
estimates log Z and keeps every row on disk.
"""

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from lightning.fabric import Fabric
from rich.console import Console

from dualscore.assemble import build
from dualscore.evaluation.session import Session
from dualscore.images import to_pixels
from dualscore.measuring.estimators import normalizer_stage
from dualscore.measuring.quantities import clean_energies
from dualscore.measuring.subject import Stage, Subject
from dualscore.settings.experiment import load_experiment

IMAGES = 2048


def make_demo(folder: Path) -> Path:
    """Prepare the demo's shards."""
    data = folder / "demo16"
    make = [sys.executable, "-m", "data_prep", "build", "demo", "--size", "16", "--out", str(data)]
    subprocess.run(make, check=True, capture_output=True)
    return data


def evaluation_figures(folder: Path, data: Path, repeats: int, width: int) -> dict[str, float]:
    """The paper's protocol, in images a second of the bare forward pass, in turns.

    Args:
        folder: where rows may be written.
        data: the demo's shards.
        repeats: turns.
        width: the network's.

    Returns:
        The ratio, its median and range, by name.
    """
    config = load_experiment("patches_dual", [f"network.width={width}", f"data.path={data}"])
    module, datamodule = build(config)
    fabric = Fabric(accelerator="auto", devices=1)
    model = module.evaluated.requires_grad_(False).eval().to(fabric.device)
    count = min(IMAGES, datamodule.counts["val"])
    batches = [
        to_pixels(batch.image, config.data.channels).to(fabric.device)
        for batch in datamodule.evenly_spaced("val", count, config.evaluate.batch_size)
    ]
    prior = module.prior.to(fabric.device)
    subject = Subject(model, prior, None, quantized=True, dequantize=False, t_range=module.t_range, seed=0)
    stages = [
        normalizer_stage(subject, "val", count),
        Stage("paper", "val", count, clean_energies),
    ]

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                energy = model(batch, torch.zeros(len(batch), device=batch.device))
        energy.cpu()

    def paper() -> None:
        rows = folder / "rows"
        session = Session(fabric, subject, datamodule, config.evaluate, rows, {}, 0, Console(quiet=True))
        for stage in stages:
            session.run(stage)
        shutil.rmtree(rows)

    ratios = []
    for turn in range(repeats + 1):
        seconds = {}
        for work in (bare, paper) if turn % 2 else (paper, bare):
            start = time.perf_counter()
            work()
            seconds[work] = time.perf_counter() - start
        if turn:
            ratios.append(seconds[bare] / seconds[paper])
    return {
        "paper's protocol, images/s of the bare forward pass": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }

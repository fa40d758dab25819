"""How fast images are scored from their files, against the bare forward pass on pixels in memory.

Both see the same images in the same batches. Scoring reads and decodes PNG files in loader processes, makes
heat maps, keeps rows on disk and draws the sheet.
"""

import statistics
import time
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from dualscore.assemble import blank_statistics, build_score_model, image_shape
from dualscore.images import to_pixels
from dualscore.model import ImageModel
from dualscore.scoring.score_images import score
from dualscore.settings.config import ExperimentConfig

SECONDS, MOST_BATCHES = 4.0, 64
"""The bare pass takes this long, if that many batches are enough for it."""


def scoring_figures(
    folder: Path, config: ExperimentConfig, repeats: int, batch_size: int, workers: int = 1
) -> dict[str, float]:
    """Scoring, in images a second of the bare forward pass, in turns.

    Args:
        folder: where images and scores may be written.
        config: of the network.
        repeats: turns.
        batch_size: images at once.
        workers: loader processes.

    Returns:
        Ratios and rates by name.
    """
    shape = image_shape(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build_score_model(config, blank_statistics(shape)).requires_grad_(False).eval().to(device)
    model = ImageModel(network, image_shape=shape, log_normalizer=0.0).eval()
    generator = np.random.default_rng(0)
    stored = generator.integers(0, 256, (batch_size, *shape[1:], 3), dtype=np.uint8)
    clean = to_pixels(torch.from_numpy(stored).permute(0, 3, 1, 2), shape[0]).to(device)
    t = torch.zeros(batch_size, device=device)

    def bare(batches: int) -> float:
        start = time.perf_counter()
        with torch.no_grad():
            for _ in range(batches):
                energy = network(clean, t)
        energy.cpu()
        return time.perf_counter() - start

    bare(2)
    batches = max(1, min(ceil(SECONDS / bare(1)), MOST_BATCHES))
    source = folder / "images"
    source.mkdir()
    for number in range(batches * batch_size):
        Image.fromarray(stored[number % batch_size]).save(source / f"{number:06d}.png")

    def scored(maps: bool) -> float:
        with TemporaryDirectory(dir=folder) as out:  # a new one: deleting old maps takes as long as they did
            start = time.perf_counter()
            score(
                folder / "none.ckpt",
                [source],
                Path(out),
                Console(quiet=True),
                model=model,
                maps=maps,
                batch_size=batch_size,
                workers=workers,
                device=device.type,
            )
            return time.perf_counter() - start

    works = {"bare": lambda: bare(batches), "alone": lambda: scored(False), "maps": lambda: scored(True)}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            found = work()
            if turn:
                seconds[name].append(found)
    ratio = {
        name: [b / s for b, s in zip(seconds["bare"], seconds[name], strict=True)]
        for name in ("alone", "maps")
    }
    images = batches * batch_size
    return {
        "bare forward pass, images/s": images / statistics.median(seconds["bare"]),
        "scoring, of its images/s": statistics.median(ratio["alone"]),
        "lowest": min(ratio["alone"]),
        "highest": max(ratio["alone"]),
        "scoring with a map file an image, of its images/s": statistics.median(ratio["maps"]),
    }

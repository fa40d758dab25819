"""How fast photographs in a tar are scored, against the energies alone of the same pixels in memory.

    python -m benchmarks.photograph_rate [--images 10000] [--side 64]

In turns, in one process, by wall time and by processor time; peak memory at the end.
"""

import argparse
import io
import resource
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

import dualscore
from data_prep.sources.demo import TRAIN, locate
from dualscore.images import crops, to_pixels
from dualscore.pictures.photographs import read_rgb
from dualscore.scoring.whole_photographs import PIXELS_AT_ONCE, ScoreOptions, score_photographs


def main() -> None:
    """Write a tar of crops, and time both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=64)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = dualscore.load("photographs").to(device)
    generator = torch.Generator().manual_seed(0)
    sources = [torch.from_numpy(_pixels(locate(*where))).permute(2, 0, 1)[None] for where in TRAIN.values()]
    batch = max(1, PIXELS_AT_ONCE[device] // options.side**2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = []
        with tarfile.open(folder / "shard.tar", "w") as tar:
            for number in range(options.images):
                square = crops(sources[number % len(sources)], options.side, generator)
                if number < batch:
                    first.append(square)
                file = io.BytesIO()
                Image.fromarray(square[0].permute(1, 2, 0).numpy()).save(file, "PNG")
                entry = tarfile.TarInfo(f"{number:06d}.png")
                entry.size = file.tell()
                file.seek(0)
                tar.addfile(entry, file)
        clean = to_pixels(torch.cat(first), 3).to(device)
        model.energy_map(clean, 0.0, batch)
        began, burnt, passes = time.perf_counter(), time.process_time(), max(1, options.images // batch // 4)
        for _ in range(passes):
            model.energy_map(clean, 0.0, batch).cpu()
        alone = time.perf_counter() - began, time.process_time() - burnt
        asked = ScoreOptions(maps=False, device=device)
        began, burnt = time.perf_counter(), time.process_time()
        score_photographs(None, [folder / "shard.tar"], folder / "out", Console(quiet=True), asked)
        all_of_it = time.perf_counter() - began, time.process_time() - burnt
    for what, energies, command in zip(("wall", "processor"), alone, all_of_it, strict=True):
        rates = passes * len(clean) / energies, options.images / command
        shown = f"energies alone {rates[0]:.1f} images/s, the command {rates[1]:.1f}"
        print(f"{what}: {shown}: {rates[1] / rates[0]:.3f}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


def _pixels(path: Path) -> NDArray[np.uint8]:
    return np.array(read_rgb(path))


if __name__ == "__main__":
    main()

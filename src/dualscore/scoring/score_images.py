"""`dualscore score`: from a model and image files to scores on disk, as a stream of any length."""

import math
from array import array
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import compress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console, RenderableType

from dualscore.devices import to_measure
from dualscore.errors import ScoreError
from dualscore.evaluation.store import DEFINITIONS, RowStore
from dualscore.files.aside import sha256
from dualscore.files.typed_json import read_json
from dualscore.likelihood import Estimate, mean
from dualscore.model import ImageModel
from dualscore.model_files.loading import load, locate
from dualscore.pictures.grids import colour, common_scale, to_bytes
from dualscore.scoring import score_files
from dualscore.scoring.image_files import ImageFiles, Photographs, Problems, check_given, read_batches
from dualscore.scoring.score_files import COLUMNS, Outcome, Row, Thumbnail
from dualscore.scoring.scorer import Reference, Scores, check_level, normalized, score_batch, wanted_size

SHEET_EACH, TABLE_EACH = 30, 10
"""How many of the most probable images, and of the least, the sheet and the table show."""
PIXELS_AT_ONCE = 2**18  # of images of another size than the model's own, which may be whole photographs
REPORTED = {"val": "validation images", "test": "test images"}
"""Splits that an evaluation reports, and what their images are called."""


def score(
    model_path: Path,
    given: Sequence[Path],
    out: Path,
    console: Console,
    *,
    model: ImageModel | None = None,
    psnr: float | None = None,
    maps: bool = True,
    resize: bool = False,
    normalize: bool = False,
    batch_size: int = 128,
    workers: int = 0,
    device: str = "cpu",
) -> Outcome:
    """Score image files and folders with a checkpoint, or with the best one of a run's folder.

    Writes scores.csv as images come, then scores.json and sheet.png; failures.csv and maps/ beside. Unusable
    files are counted; a DualscoreError if all are. A `model` takes the place of the one at the path, whose
    evaluation holds the energies that images are ranked among.
    """
    checkpoint = locate(model_path)
    check_given(given, out)
    model = model or load(checkpoint)
    if psnr is not None:
        check_level(psnr, model.t_max)
    size = wanted_size(model, given, out, resize=resize, normalize=normalize)
    model = to_measure(model, device)
    own_size = model.image_shape == (size.channels, size.height, size.width)
    if not own_size:  # whole photographs, perhaps
        batch_size = max(1, min(batch_size, PIXELS_AT_ONCE // (size.height * size.width)))
    reference = _reference(model, checkpoint) if own_size else None
    _prepare(out, maps)
    photographs = Photographs(given)
    with ExitStack() as stack:
        problems = Problems(stack.enter_context(score_files.open_failures(out)))
        file = stack.enter_context(score_files.open_csv(out / "scores.csv", COLUMNS))
        written = Written(out, file, stack.enter_context(ThreadPoolExecutor(1)) if maps else None)
        files = ImageFiles(given, out, size, batch_size)
        for chunk in stack.enter_context(read_batches(files, workers, problems, console, "scored")):
            model = normalized(model, chunk.images, size)
            scores = score_batch(model, chunk.images, reference, psnr)
            finite = scores.finite()
            problems.add_not_finite(compress(chunk.paths, (~finite).tolist()))
            if finite.any():
                paths = list(compress(chunk.paths, finite.tolist()))
                written.add(paths, scores[finite])
                photographs.add(paths)
        written.finish()
    problems.tell(console)
    if written.scale is None:
        raise ScoreError(f"no image could be scored: {problems.reason(given)}")
    bits = torch.tensor(written.bits, dtype=torch.float64)
    average = Estimate(float(bits[0]), math.nan, 1)
    if len(bits) > 1:
        average = mean(bits, torch.tensor(photographs.groups))
    ranked = None
    if reference is not None:
        ranked = {"images": len(reference.energies), "rows": reference.source, "which": reference.which}
    summary = {
        "model": model.provenance,
        "checkpoint": str(checkpoint),
        "image_shape": list(model.image_shape or ()),
        "log_normalizer": model.log_normalizer,
        "normalization": None if model.normalization is None else model.normalization.plain(),
        "images": len(bits),
        "photographs": average.groups,
        "failed": problems.count,
        "mean_bits_per_dim": average.value,
        "stderr": None if math.isnan(average.stderr) else average.stderr,
        "effective_dimension_at_psnr": psnr,
        "map_scale_bits": written.scale,
        "validation": ranked,
    }
    rows = score_files.read_rows(out / "scores.csv")
    score_files.write_json(out / "scores.json", summary, "scores", rows)
    sheet = score_files.draw_sheet(written.kept, len(bits), written.scale)
    Image.fromarray(sheet).save(out / "sheet.png")
    return Outcome(summary, _report(summary, [kept.row for kept in written.kept], photographs, out, maps))


def _prepare(out: Path, maps: bool) -> None:
    """Make the folder, and remove earlier results."""
    (out / "maps" if maps else out).mkdir(parents=True, exist_ok=True)
    for stale in (*(out / "maps").glob("[0-9]" * 6 + "*-*.png"), out / "scores.json", out / "sheet.png"):
        stale.unlink(missing_ok=True)


class Written:
    """What is written and kept while images stream through; without a thread no maps."""

    def __init__(self, out: Path, file: IO[str], thread: ThreadPoolExecutor | None) -> None:
        self.out, self.file, self.thread = out, file, thread
        self.bits = array("d")
        self.scale: tuple[float, float] | None = None
        """Of all heat maps, from the first batch."""
        self.kept: list[Thumbnail] = []
        """The most and the least probable images so far, in this order."""
        self._maps: Future[None] | None = None

    def add(self, paths: Sequence[str], scores: Scores) -> None:
        """Append a batch's rows, write its maps, and keep the extremes."""
        self.scale = self.scale or common_scale(scores.maps.numpy())
        heat, images = colour(scores.maps.numpy(), self.scale), to_bytes(scores.pixels / 255.0)
        columns = {name: column.tolist() for name, column in scores.columns.items()}
        rows: list[Row] = []
        for j, path in enumerate(paths):
            number = len(self.bits) + j
            row = {"file": path} | {name: column[j] for name, column in columns.items()}
            if self.thread is not None:
                row["map"] = f"maps/{number:06d}-{Path(path).stem[:40]}.png"
            rows.append(row)
            pair = np.stack([images[j], heat[j]])
            self.kept.append(Thumbnail(row["bits_per_dim"], number, row, pair))
        self.bits.extend(columns["bits_per_dim"])
        self.kept.sort()
        del self.kept[SHEET_EACH:-SHEET_EACH]
        if self.thread is not None:
            # Beside the next batch's forward pass: making files is mostly waiting.
            self.finish()  # so that one batch waits at most, and a full disk is noticed
            self._maps = self.thread.submit(_save, [self.out / row["map"] for row in rows], heat)
        score_files.append(self.file, [[row.get(name) for name in COLUMNS] for row in rows])

    def finish(self) -> None:
        """Wait for the maps that are still being written."""
        if self._maps is not None:
            self._maps.result()


def _save(paths: Sequence[Path], pictures: NDArray[np.uint8]) -> None:
    for path, pixels in zip(paths, pictures, strict=True):
        Image.fromarray(pixels).save(path, compress_level=1)


def _reference(model: ImageModel, checkpoint: Path) -> Reference | None:
    """The energies to rank among: in a model file itself, or beside a checkpoint."""
    if model.origin is not None and model.origin.energies is not None:
        return Reference(model.origin.energies, str(checkpoint), "images kept in the model file")
    return find_reference(checkpoint) if checkpoint.is_file() else None


def find_reference(checkpoint: Path) -> Reference | None:
    """Energies of the most images that an evaluation of exactly this checkpoint reported."""
    wanted = {"checkpoint": sha256(checkpoint), "definitions": DEFINITIONS}
    found = []
    # Where `evaluate` keeps them: in the run's folder, or beside the checkpoint that it was given.
    for root in (checkpoint.parent.parent / "evaluation", checkpoint.parent / "evaluation"):
        for description in sorted(root.glob("paper-*/identity.json")):
            identity = read_json(description)
            which = REPORTED.get(identity.get("split", ""))
            if which and wanted.items() <= identity.items():
                energies = RowStore(root, "paper", identity, rank=0).read().get("energy")
                if energies is not None and len(energies):
                    found.append(Reference(energies, str(description.parent), which))
    return max(found, key=lambda reference: len(reference.energies), default=None)


def _report(
    summary: dict[str, Any], shown: Sequence[Row], photographs: Photographs, out: Path, maps: bool
) -> list[RenderableType]:
    images, failed, validation = (summary[key] for key in ("images", "failed", "validation"))
    if images > 2 * TABLE_EACH:
        shown = [*shown[:TABLE_EACH], *shown[-TABLE_EACH:]]
    stderr = "" if summary["stderr"] is None else f" ± {summary['stderr']:.3f}"
    counted = "one image"
    if images > 1:
        over = f", {photographs}: no error" if photographs.total == 1 else f"; ± is over {photographs}"
        counted = f"{images:,} images{over}"
    left_out = f"; {failed:,} left out, see {out / 'failures.csv'}" if failed else ""
    ranks = (
        "no percentiles: no evaluation of this checkpoint on images of this size was found; "
        "dualscore evaluate EXPERIMENT measures the validation images"
    )
    if validation is not None:
        ranks = f"percentile: of {validation['images']:,} {validation['which']}, how many are less probable"
    return [
        score_files.score_table(shown, images),
        f"{summary['mean_bits_per_dim']:.3f}{stderr} bits/dim, the mean of {counted}{left_out}",
        ranks,
        f"written to {out}: scores.csv, scores.json, failures.csv, sheet.png{', maps/' if maps else ''}",
    ]

"""What dry runs of commands say that take photographs as they are: rows, each after its check."""

from collections.abc import Iterator
from pathlib import Path

from dualscore.coding import require_constriction
from dualscore.compression.compress_images import CompressOptions, check_out
from dualscore.compression.container import unpack
from dualscore.compression.decompress_file import refuse_if_nothing_is_left
from dualscore.devices import find_device
from dualscore.likelihood.noise_level import EVALUATIONS
from dualscore.model_files.loading import load
from dualscore.scoring.image_files import check_given
from dualscore.scoring.noise_of_files import WRITTEN
from dualscore.scoring.row_files import require_parquet
from dualscore.scoring.scorer import check_level
from dualscore.scoring.which_model import Asked
from dualscore.scoring.whole_photographs import ScoreOptions, written_files
from dualscore.shipped.boxed import BOXED
from dualscore.terminal.boxes import Row, writes

Rows = Iterator[Row]


def _models_and_images(asked: Asked, out: Path, psnr: float | None = None) -> Rows:
    for name in [str(asked.path)] if asked.path is not None else BOXED:
        model = load(name)
        if psnr is not None:
            check_level(psnr, model.t_max)
        yield "model", f"{name}: {model.provenance}"
    check_given(asked.images, out)
    yield "images", ", ".join(map(str, asked.images))


def score_photographs(asked: Asked, out: Path, options: ScoreOptions, devices: int) -> Rows:
    """What would be scored of photographs as they are."""
    yield from _models_and_images(asked, out, options.psnr)
    if options.psnr is not None:
        yield "d_eff", f"the effective dimension at {options.psnr:g} dB"
    if options.parquet:
        require_parquet()
    where = str(find_device(options.device))
    yield "device", where if devices == 1 else f"{devices} processes, {where}"
    which, parts = options.part
    yield "work", f"one evaluation an image{f', of part {which} of {parts}' if parts > 1 else ''}"
    if options.strata:
        yield "bound", f"{options.strata + 1} evaluations of the gradient an image"
    yield writes(out, *written_files(options))


def noise(asked: Asked, out: Path, device: str) -> Rows:
    """What would be looked at for its noise."""
    yield from _models_and_images(asked, out)
    yield "device", str(find_device(device))
    yield "work", f"{EVALUATIONS} evaluations an image"
    yield writes(out, WRITTEN)


def compress(asked: Asked, out: Path, options: CompressOptions) -> Rows:
    """What would be coded; the images themselves are not looked at."""
    yield from _models_and_images(asked, out)
    check_out(out)
    require_constriction()
    precision = "double precision" if options.double else "the model's precision"
    times = (8 if options.orientations else 2) * (options.levels + 1)
    yield "work", f"{times:,} gradients of the energy for each image or tile, in {precision}"
    yield writes(out.parent, out.name, f"{out.name}.json")


def decompress(file: Path, out: Path) -> Rows:
    """What would be decoded, after its header and checksums were looked at."""
    contents, stacks, raw = unpack(file)
    refuse_if_nothing_is_left(file, contents, stacks)
    whole = sum(stack is not None for stack in stacks) + (raw is not None)
    yield (
        "file",
        f"{len(contents.pictures):,} images; {whole} of {len(stacks) + 1} parts are as they were written: "
        f"{len(stacks)} of bits, and tiles stored as they are",
    )
    for model in contents.models:
        yield "model", f"{model.name}, SHA-256 {model.sha256[:16]}…"
    yield writes(out, f"{len(contents.pictures):,} × .png")

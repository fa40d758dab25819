"""`dualscore compress`: images in, a file out from which the same pixels come."""

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from dualscore.bars import counted
from dualscore.coding import NoiseLevels, last_variance
from dualscore.compression.coders import Coders, one_thread
from dualscore.compression.compression_report import lines, summarize
from dualscore.compression.container import MAGIC, CodedModel, Contents, pack, reread
from dualscore.compression.encoder import Encoder
from dualscore.compression.rivals import Rivals
from dualscore.compression.tiles import cut, tiles_of
from dualscore.compression.wanted_pictures import LONGEST_NAME, Wanted, channels_of, exactly
from dualscore.errors import CodingError
from dualscore.files.aside import sha256, write_aside, write_changed
from dualscore.files.plain_text import printable
from dualscore.likelihood.bound import bound_range
from dualscore.model import ImageModel
from dualscore.model_files.loading import locate
from dualscore.scoring.image_files import Problems, check_given
from dualscore.scoring.photograph_scores import named_or_boxed
from dualscore.scoring.picture_stream import pictures
from dualscore.scoring.score_files import Outcome

_REPORT = b'{\n "models"'
"""What a report begins with."""
CHOOSING = 32
"""Tiles, about, that choose where the prior takes over."""


@dataclass(frozen=True)
class CompressOptions:
    """How images are coded; the command's options."""

    levels: int = 100
    double: bool = False
    orientations: bool = False
    codecs: bool = False


def compress(
    path: Path | None,
    given: Sequence[Path],
    out: Path,
    console: Console,
    options: CompressOptions,
    model: ImageModel | None = None,
) -> Outcome:
    """Code images with the model at a path, or the boxed ones, into a file; a report lies beside it."""
    check_given(given, out)
    check_out(out)
    models = named_or_boxed(path, model)
    problems, others, began = Problems(), Counter[str](), time.monotonic()
    contents = Contents(options.levels, options.double, options.orientations, torch.__version__)
    encoder = Encoder(contents, lambda name, some: prepare(name, dict(models)[name], some, contents))
    rivals = Rivals() if options.codecs else None
    with one_thread(), counted(console, "coded", "numbers") as advance:
        stream = pictures(given, out, others=others, reader=exactly)
        wanted = Wanted(models, given, problems).of(stream)
        for picture in encoder.all(wanted, advance):
            if rivals is not None:
                rivals.add(picture.pixels)
    spent = time.monotonic() - began
    problems.others = others
    problems.tell(console)
    if not contents.pictures:
        raise CodingError(f"no image could be coded: {problems.reason(given)}")
    content, header = pack(contents, encoder.stacks, b"".join(encoder.raw))
    if reread(content, out) != contents:
        raise CodingError(f"{out}: what was written would not be read as it is; nothing is written")
    write_aside(out, content)
    summary = summarize(contents, encoder, len(content), header) | {"seconds": spent}
    if rivals is not None:
        summary["codecs"] = rivals.bits_per_dim(summary["dimensions"])
    write_changed(report_of(out), json.dumps(summary, indent=1) + "\n")
    return Outcome(summary, [*lines(summary, out)])


def check_out(out: Path) -> None:
    """Refuse a place where no file can be written."""
    if out.is_dir():
        raise CodingError(f"--out {out}: is a folder; name a file")
    folder = out.absolute().parent
    if not folder.is_dir():
        raise CodingError(f"--out {out}: there is no folder {folder}")
    if not os.access(folder, os.W_OK) or len(os.fsencode(out.name)) > LONGEST_NAME:
        raise CodingError(f"--out {out}: cannot be written; name another file")
    if out.exists() and not _begins_as(out, MAGIC):
        raise CodingError(f"--out {out}: is there, and is no file of `dualscore compress`; name another")
    report = report_of(out)
    if report.exists() and not (report.is_file() and _begins_as(report, _REPORT)):
        raise CodingError(f"--out {out}: its report would replace {report}, which is none; name another")


def report_of(out: Path) -> Path:
    """The report beside a file."""
    return out.with_name(f"{out.name}.json")


def _begins_as(path: Path, beginning: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(beginning)) == beginning


def prepare(
    name: str,
    model: ImageModel,
    some: Sequence[NDArray[np.uint8]],
    contents: Contents,
) -> Coders:
    """The code of a model, which joins the file's: some of its pictures choose where the prior begins."""
    channels = channels_of(name, model)
    assert model.image_shape is not None
    assert model.prior is not None
    side = None if model.any_size else model.image_shape[1:]
    tiles = [
        (pixels, tile)
        for number, pixels in enumerate(some[:CHOOSING])
        for tile in tiles_of(number, 0, (pixels.shape[1], pixels.shape[2]), side)
    ]
    size = max(Counter(tile[-2:] for _, tile in tiles).items(), key=lambda found: found[1])[0]
    alike = [cut(pixels, tile) for pixels, tile in tiles if tile[-2:] == size]
    clean = torch.from_numpy(np.stack(alike[:: max(1, len(alike) // CHOOSING)])).to(model.like) / 255.0
    t0, end = bound_range((model.t_min, model.t_max))
    t1 = last_variance(model.score_model, clean, model.prior.at(*size), (t0, end))
    coders = Coders(model, NoiseLevels(t0, t1, contents.levels), contents.double, contents.orientations)
    digest, test = sha256(locate(name)), coders.self_test(side)
    contents.models.append(CodedModel(printable(name), digest, channels, side, t0, t1, test))
    return coders

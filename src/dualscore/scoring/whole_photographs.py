"""`dualscore score` with a model of any size: photographs as they are, as a stream of any length."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from dualscore.bars import counted
from dualscore.devices import find_device, to_measure
from dualscore.errors import ScoreError
from dualscore.files.aside import sha256
from dualscore.model import ImageModel
from dualscore.model_files.loading import locate
from dualscore.pictures.grids import colour
from dualscore.scoring import score_files
from dualscore.scoring.image_files import Problems, check_given
from dualscore.scoring.photograph_report import SCALE, report, summarize, thumbnails
from dualscore.scoring.photograph_scores import (
    PhotographScorer,
    as_batch,
    is_gray,
    named_or_boxed,
    over_photograph,
    smooth,
)
from dualscore.scoring.picture_stream import Picture, pictures
from dualscore.scoring.row_files import (
    FAILURES,
    PARQUET,
    Row,
    RowFiles,
    is_complete,
    merge,
    read_rows,
    require_parquet,
    write_parquet,
)
from dualscore.scoring.score_files import Outcome
from dualscore.scoring.scorer import check_level

PIXELS_AT_ONCE = {"cpu": 2**16, "cuda": 2**22}
"""Of small images that are looked at together; a large one is looked at alone, a few rows at a time."""


@dataclass(frozen=True)
class ScoreOptions:
    """How photographs are scored; the command's options."""

    strata: int = 0
    psnr: float | None = None
    maps: bool = True
    parquet: bool = False
    part: tuple[int, int] = (1, 1)
    batch_size: int = 128
    workers: int = 1
    device: str = "cpu"


def of_any_size(model: ImageModel) -> bool:
    """Whether `score_photographs` takes a model."""
    return model.any_size and model.image_shape is not None


def scorers(
    path: Path | None, options: ScoreOptions, model: ImageModel | None = None
) -> list[PhotographScorer]:
    """The model at a path, or without one those in the box: gray photographs have a model of their own."""
    found = named_or_boxed(path, model)
    for _, loaded in found:
        if options.psnr is not None:
            check_level(options.psnr, loaded.t_max)
    return [
        PhotographScorer(to_measure(loaded, options.device), name, options.strata, options.psnr)
        for name, loaded in found
    ]


def score_photographs(
    path: Path | None,
    given: Sequence[Path],
    out: Path,
    console: Console,
    options: ScoreOptions,
    model: ImageModel | None = None,
    allow_none: bool = False,
) -> Outcome:
    """Score photographs of any size with the model at a path, or the boxed ones.

    Rows go to scores.csv as they come, and a command that was killed goes on with them. A part of several
    writes below the folder; the last one to finish puts all together.
    """
    check_given(given, out)
    if options.parquet:
        require_parquet()
    models = scorers(path, options, model)
    place = part_folder(out, options.part)
    (place / "maps" if options.maps else place).mkdir(parents=True, exist_ok=True)
    problems = Problems()
    identity = _identity(models, given, options)
    rows = RowFiles(place, identity)
    if not rows.done:
        _clear(out, place)
    else:
        console.print(f"goes on after {rows.done:,} pictures that were looked at before", soft_wrap=True)
    others = Counter[str]()
    stream = pictures(
        given,
        out,
        first=rows.done,
        before=rows.last,
        part=options.part,
        threads=options.workers,
        others=others,
    )
    run = _Run(place, options, models, rows, problems)
    began = time.monotonic()
    run.all(stream, console)
    spent = time.monotonic() - began
    problems.others = others
    problems.tell(console)
    rate = run.scored, spent
    return _finish(out, options, models, identity, problems.reason(given), rate, allow_none)


def finish_parts(
    path: Path | None,
    given: Sequence[Path],
    out: Path,
    console: Console,
    options: ScoreOptions,
    rate: tuple[int, float],
) -> Outcome:
    """Put parts together that have finished before; `rate` has the images they scored, and the seconds."""
    models = scorers(path, options)
    identity = _identity(models, given, options)
    outcome = _finish(out, options, models, identity, f"{given[0]} holds no image", rate, False)
    problems = Problems()
    problems.add([(row["file"], row["reason"]) for row in read_rows(out / FAILURES)])
    problems.tell(console)
    return outcome


def _clear(out: Path, place: Path) -> None:
    """Remove what an earlier scoring left where another one begins."""
    for folder in {out, place}:
        for name in ("scores.json", "sheet.png", PARQUET):
            (folder / name).unlink(missing_ok=True)
    for heat in (place / "maps").glob("[0-9]" * 6 + "*-*.png"):
        heat.unlink(missing_ok=True)


def part_folder(out: Path, part: tuple[int, int]) -> Path:
    """Where a part's rows lie: in the folder itself where there is one part alone."""
    return out if part[1] == 1 else out / f"part-{part[0]:04d}-of-{part[1]:04d}"


def _identity(
    models: Sequence[PhotographScorer], given: Sequence[Path], options: ScoreOptions
) -> dict[str, Any]:
    """What decides every row, as far as one can tell without looking at the pictures."""
    return {
        "models": [sha256(locate(model.name)) for model in models],
        "given": [str(path.absolute()) for path in given],
        "part": list(options.part),
        "strata": options.strata,
        "psnr": options.psnr,
        "maps": options.maps,
    }


class _Run:
    """A part's pictures: scored in groups of one size and kind, as they come."""

    def __init__(
        self,
        out: Path,
        options: ScoreOptions,
        models: Sequence[PhotographScorer],
        rows: RowFiles,
        problems: Problems,
    ) -> None:
        self.out, self.options, self.models = out, options, models
        self.rows, self.problems = rows, problems
        self.device = find_device(options.device)
        self.scored = 0
        self._maps: Future[None] | None = None  # of the group before, being saved
        self._held: tuple[list[Row], list[Row]] = [], []  # its rows, which are written when its maps are

    def all(self, stream: Iterator[Picture], console: Console) -> None:
        """Score what comes, and close the files."""
        with counted(console, "scored") as advance, ThreadPoolExecutor(1) as pool:
            for group in self._groups(stream):
                self._score(group, pool)
                advance(len(group))
            self._settle()
        self.rows.close()

    def _groups(self, stream: Iterator[Picture]) -> Iterator[list[Picture]]:
        """Pictures one after another that go together, with those between that could not be read."""
        most = PIXELS_AT_ONCE["cpu" if self.device.type == "cpu" else "cuda"]
        held: list[Picture] = []
        kind: tuple[Any, ...] | None = None
        count = 0
        for picture in stream:
            if picture.pixels is None:
                held.append(picture)
                continue
            its = (picture.pixels.shape, self._model_of(picture.pixels).name)
            size = picture.pixels[0].size
            full = (count + 1) * size > most or count >= self.options.batch_size
            if count and (its != kind or full):
                yield held
                held, count = [], 0
            held.append(picture)
            kind, count = its, count + 1
        if held:
            yield held

    def _model_of(self, pixels: NDArray[np.uint8]) -> PhotographScorer:
        return self.models[-1 if len(self.models) > 1 and is_gray(pixels) else 0]

    def _score(self, group: Sequence[Picture], pool: ThreadPoolExecutor) -> None:
        good = [(picture, picture.pixels) for picture in group if picture.pixels is not None]
        failed = [(picture, picture.problem) for picture in group if picture.pixels is None]
        rows: list[Row] = []
        heat: list[tuple[Path, NDArray[np.float64], NDArray[np.uint8]]] = []
        if good:
            scorer = self._model_of(good[0][1])
            found = scorer(as_batch([pixels for _, pixels in good], self.device))
            for place, (picture, pixels) in enumerate(good):
                if not found.finite[place]:
                    failed.append((picture, "has an energy that is not finite"))
                    continue
                row: Row = {"number": picture.number, "file": picture.name}
                row |= {name: column[place] for name, column in found.columns.items()}
                if len(self.models) == 1 and scorer.channels == 3 and is_gray(pixels):
                    row["unlike"] = "gray, and scored by a model of colour: far too probable"
                if self.options.maps:
                    row["map"] = f"maps/{picture.number:06d}-{Path(picture.name).stem[:40]}.png"
                    heat.append((self.out / row["map"], found.maps[place], pixels))
                rows.append(row)
        failures: list[Row] = [
            {"number": picture.number, "file": picture.name, "reason": reason}
            for picture, reason in sorted(failed, key=lambda one: one[0].number)
        ]
        self.problems.add([(row["file"], row["reason"]) for row in failures])
        self._settle()  # so that one group's maps wait at most, and a full disk is noticed
        self._maps = pool.submit(_save, heat)
        self._held = rows, failures
        if len(heat) == 1:  # a large one
            self._settle()
        self.scored += len(rows)

    def _settle(self) -> None:
        """Wait for the maps of the group before, and write its rows: a row says that its map is there."""
        if self._maps is not None:
            self._maps.result()
            self.rows.add(*self._held)
            self._maps = None


def _save(pictures: Sequence[tuple[Path, NDArray[np.float64], NDArray[np.uint8]]]) -> None:
    for path, heat, pixels in pictures:
        Image.fromarray(over_photograph(colour(smooth(heat), SCALE), pixels)).save(path, compress_level=1)


def _finish(
    out: Path,
    options: ScoreOptions,
    models: Sequence[PhotographScorer],
    identity: dict[str, Any],
    reason: str,
    rate: tuple[int, float],
    allow_none: bool,
) -> Outcome:
    """Put finished parts together, and say what was found; of a part before the last, only its own."""
    which, parts = options.part
    folders = [part_folder(out, (k, parts)) for k in range(1, parts + 1)]
    complete = [is_complete(folder, identity) for folder in folders]
    everything = all(complete)
    place = out if everything else part_folder(out, options.part)
    if parts > 1 and everything:
        merge(folders, out)
    if options.parquet:
        write_parquet(place)
    summary, shown = summarize(place, models)
    if not summary["images"] and everything and not allow_none:
        raise ScoreError(f"no image could be scored: {reason}")
    summary |= {"scored": rate[0], "images_per_second": rate[0] / rate[1] if rate[0] and rate[1] else None}
    score_files.write_json(place / "scores.json", summary, "extremes", shown)
    if shown:
        Image.fromarray(score_files.draw_sheet([*thumbnails(place, shown)], summary["images"], SCALE)).save(
            place / "sheet.png"
        )
    lines = report(summary, shown, place, written_files(options), rate, options.device)
    if parts > 1 and not everything:
        missing = complete.count(False)
        lines.append(f"part {which} of {parts}; {missing} not finished: the last to finish puts all together")
    return Outcome(summary, lines)


def written_files(options: ScoreOptions) -> list[str]:
    """What a scoring leaves in its folder, for people."""
    parquet, heat = ["scores.parquet"] if options.parquet else [], ["maps/"] if options.maps else []
    return ["scores.csv", *parquet, "scores.json", "failures.csv", "sheet.png", *heat]

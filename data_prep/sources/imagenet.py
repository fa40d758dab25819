"""The official down-sampled ImageNet of Chrabaszcz et al. 2017: batch files, pickled or npz."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.plan import EACH_IMAGE, Plan, Request, Source
from data_prep.sources.archive import what_is_there
from data_prep.sources.batches import batch_unit, numbers, search, source_files, split_last
from dualscore.errors import DataError

BATCHES = 10
VALIDATION = 10_000
"""Images at the end of the last training file that validate, so that the official ones are left for test."""
VALIDATION_SHARE = 10
"""One in so many of that file, where it holds few."""


@dataclass(frozen=True)
class Imagenet(Source):
    """Images of ``side``×``side``; the order of the files and within them is kept.

    The official validation set is the test split; the end of the training set validates.
    """

    side: int
    uses = frozenset({"src"})
    train_pattern = r"train_data_batch_\d+(\.npz)?"
    test_pattern = r"val_data(\.npz)?"

    @property
    def about(self) -> str:
        """The release, its side and its files."""
        return (
            f"official down-sampled ImageNet, {self.side}×{self.side}: train_data_batch_1 … 10 and val_data"
        )

    @property
    def archives(self) -> str:
        """Names of the archives looked into, any case."""
        return rf"imagenet{self.side}_(train|val).*\.(zip|tar|tar\.gz|tgz)"

    def find(self, src: Path | None) -> list[Path]:
        """Batch files, and archives that may hold some."""
        if src is None or not src.exists():
            raise DataError(
                f"{src} does not exist: give the folder of train_data_batch_1 … and val_data as --src"
            )
        files = source_files(src, f"{self.train_pattern}|{self.test_pattern}", self.archives)
        if not files:
            raise DataError(
                f"{src} holds no train_data_batch_1 …, no val_data and no Imagenet{self.side}_*.zip "
                f"({what_is_there(src)}): give the folder of the official release as --src"
            )
        return files

    def plan(self, request: Request) -> Plan:
        """One unit a batch file."""
        assert request.src is not None
        shape = (3, self.side, self.side)
        train = search(request.src, self.train_pattern, self.archives)
        test = search(request.src, self.test_pattern, self.archives)
        if not train:
            raise DataError(
                f"{request.src} holds no train_data_batch_1 …: add the training files of the release"
            )
        if not test:
            raise DataError(f"{request.src} holds no val_data: add the validation file of the release")
        present = numbers(train)
        missing = sorted(set(range(1, BATCHES + 1)) - set(present))
        warnings = []
        if missing:
            absent = ", ".join(map(str, missing))
            warnings.append(f"only {len(present)} of {BATCHES} training batches are there, without {absent}")
        units = split_last([batch_unit("train", ref, shape) for ref in train], VALIDATION, VALIDATION_SHARE)
        units += [batch_unit("test", ref, shape) for ref in test]
        release = f"imagenet{self.side} down-sampled, official anti-aliased release (Chrabaszcz et al. 2017)"
        source = {"batches": present, "images": {unit.ref.name: unit.rows for unit in units}}
        return Plan(shape, release, tuple(units), source, tuple(warnings), EACH_IMAGE)

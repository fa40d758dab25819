"""The official down-sampled ImageNet of Chrabaszcz et al. 2017: batch files, pickled or npz."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.plan import Plan, Request, Source
from data_prep.sources.batches import batch_unit, numbers, search, source_files
from dualscore.errors import DataError

BATCHES = 10


@dataclass(frozen=True)
class Imagenet(Source):
    """Images of ``side``×``side``; the order of the files and within them is kept."""

    side: int
    uses = frozenset({"src"})
    train_pattern = r"train_data_batch_\d+(\.npz)?"
    val_pattern = r"val_data(\.npz)?"

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
        files = source_files(src, f"{self.train_pattern}|{self.val_pattern}", self.archives)
        if not files:
            raise DataError(
                f"{src} holds no train_data_batch_1 …, no val_data and no Imagenet{self.side}_*.zip: "
                "give the folder of the official release as --src"
            )
        return files

    def plan(self, request: Request) -> Plan:
        """One unit a batch file."""
        assert request.src is not None
        shape = (3, self.side, self.side)
        train = search(request.src, self.train_pattern, self.archives)
        val = search(request.src, self.val_pattern, self.archives)
        if not train:
            raise DataError(
                f"{request.src} holds no train_data_batch_1 …: add the training files of the release"
            )
        if not val:
            raise DataError(f"{request.src} holds no val_data: add the validation file of the release")
        present = numbers(train)
        missing = sorted(set(range(1, BATCHES + 1)) - set(present))
        warnings = []
        if missing:
            absent = ", ".join(map(str, missing))
            warnings.append(f"only {len(present)} of {BATCHES} training batches are there, without {absent}")
        units = [batch_unit("train", ref, shape) for ref in train]
        units += [batch_unit("val", ref, shape) for ref in val]
        release = f"imagenet{self.side} down-sampled, official anti-aliased release (Chrabaszcz et al. 2017)"
        source = {"batches": present, "images": {unit.ref.name: unit.images for unit in units}}
        return Plan(shape, release, tuple(units), source, tuple(warnings))

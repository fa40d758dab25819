"""CIFAR-10 in its Python version: an archive, or the folder it unpacks to."""

from pathlib import Path

from data_prep.plan import Plan, Request, Source
from data_prep.sources.batches import batch_unit, numbers, search, source_files
from dualscore.errors import DataError

TRAIN = r"data_batch_[1-5]"
VAL = r"test_batch"
ARCHIVES = r"cifar-10-python\.tar\.gz"
SHAPE = (3, 32, 32)


class Cifar10(Source):
    """Five batches to train on; the test batch to validate on."""

    about = "cifar-10-python.tar.gz, or its folder cifar-10-batches-py"
    uses = frozenset({"src"})

    def find(self, src: Path | None) -> list[Path]:
        """Batch files, or the archive."""
        files = source_files(src, f"{TRAIN}|{VAL}", ARCHIVES) if src is not None and src.exists() else []
        if not files:
            raise DataError(
                f"{src} holds neither cifar-10-python.tar.gz nor data_batch_1 …: give its folder as --src"
            )
        return files

    def plan(self, request: Request) -> Plan:
        """One unit a batch file; all six must be there."""
        assert request.src is not None
        train = search(request.src, TRAIN, ARCHIVES)
        val = search(request.src, VAL, ARCHIVES)
        if numbers(train) != [1, 2, 3, 4, 5] or not val:
            there = ", ".join(ref.name for ref in [*train, *val]) or "none"
            raise DataError(
                f"{request.src} must hold data_batch_1 … data_batch_5 and test_batch, but has {there}: "
                "download cifar-10-python.tar.gz again"
            )
        units = [batch_unit("train", ref, SHAPE) for ref in train]
        units += [batch_unit("val", ref, SHAPE) for ref in val]
        source = {"images": {unit.ref.name: unit.images for unit in units}}
        return Plan(SHAPE, "CIFAR-10, Python version (Krizhevsky 2009)", tuple(units), source)

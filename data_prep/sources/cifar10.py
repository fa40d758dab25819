"""CIFAR-10 in its Python version: an archive, or the folder it unpacks to."""

from pathlib import Path

from data_prep.plan import EACH_IMAGE, Plan, Request, Source
from data_prep.sources.archive import what_is_there
from data_prep.sources.batches import batch_unit, numbers, search, source_files, split_last
from dualscore.errors import DataError

TRAIN = r"data_batch_[1-5]"
TEST = r"test_batch"
VALIDATION = 5_000
"""Images at the end of data_batch_5 that validate: half of it."""
ARCHIVES = r"cifar-10-python\.(tar\.gz|tgz|tar)"
SHAPE = (3, 32, 32)


class Cifar10(Source):
    """Five batches to train on, but for the end of the last, which validates; the test batch."""

    about = "cifar-10-python.tar.gz, or its folder cifar-10-batches-py"
    uses = frozenset({"src"})

    def find(self, src: Path | None) -> list[Path]:
        """Batch files, or the archive."""
        files = source_files(src, f"{TRAIN}|{TEST}", ARCHIVES) if src is not None and src.exists() else []
        if not files:
            raise DataError(
                f"{src} holds neither cifar-10-python.tar.gz nor data_batch_1 … ({what_is_there(src)}): "
                "give its folder as --src"
            )
        return files

    def plan(self, request: Request) -> Plan:
        """One unit a batch file; all six must be there."""
        assert request.src is not None
        train = search(request.src, TRAIN, ARCHIVES)
        test = search(request.src, TEST, ARCHIVES)
        if numbers(train) != [1, 2, 3, 4, 5] or not test:
            there = ", ".join(ref.name for ref in [*train, *test]) or "none"
            raise DataError(
                f"{request.src} must hold data_batch_1 … data_batch_5 and test_batch, but has {there}: "
                "download cifar-10-python.tar.gz again"
            )
        units = split_last([batch_unit("train", ref, SHAPE) for ref in train], VALIDATION, share=2)
        units += [batch_unit("test", ref, SHAPE) for ref in test]
        source = {"images": {unit.ref.name: unit.rows for unit in units}}
        release = "CIFAR-10, Python version (Krizhevsky 2009)"
        return Plan(SHAPE, release, tuple(units), source, photographs=EACH_IMAGE)

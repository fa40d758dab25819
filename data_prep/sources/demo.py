"""Colour photographs that installed packages ship: a small data set that needs no download."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from data_prep.plan import Plan, Request, Source
from data_prep.sources.folder import crop_plan, look
from data_prep.sources.photographs import Photograph
from dualscore.errors import DataError

TRAIN = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "motorcycle_left": ("skimage", "data/motorcycle_left.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
}
VAL = {
    "chelsea": ("skimage", "data/chelsea.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
TEST = {
    "grace_hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "ihc": ("skimage", "data/ihc.png"),
}
"""A portrait, and stained tissue under a microscope. The other colour photographs that are shipped are of
an eye, a fifth of it plain black, of galaxies, and of the motorcycle above."""
PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}
SHIPPERS = "scikit-image, scikit-learn and matplotlib"


HALVES = {
    "demo_a": ("astronaut", "motorcycle_left"),
    "demo_b": ("coffee", "rocket", "china"),
}
"""Disjoint sets of the training photographs, with about as many crops, for pairs of networks."""


class Demo(Source):
    """Photographs to train on, all five unless named, two to validate on and two to test on."""

    uses = frozenset({"size", "seed"})

    def __init__(self, train: Sequence[str] = tuple(TRAIN)) -> None:
        self.train = {name: TRAIN[name] for name in train}
        self.all = self.train | VAL | TEST

    @property
    def about(self) -> str:
        """All of the photographs, or which ones."""
        if len(self.train) == len(TRAIN):
            return f"photographs shipped with {SHIPPERS}; no --src"
        return f"the same, trained on {' and '.join(self.train)} only"

    def find(self, src: Path | None) -> list[Path]:  # noqa: ARG002 - it needs none
        """The files, found without importing the packages."""
        return [locate(package, file) for package, file in self.all.values()]

    def plan(self, request: Request) -> Plan:
        """Crop the photographs; which one is on which side is fixed."""
        assert request.size is not None
        files = [Photograph(*file) for file in zip(self.all, self.find(None), strict=True)]
        # looking at nine photographs takes less time than starting processes
        photographs = look(files, request.size, workers=1)
        for photograph in photographs:
            if photograph.problem:
                raise DataError(
                    f"{photograph.path} {photograph.problem}: choose a smaller --size or reinstall it"
                )
        rest = iter(photographs)
        sides = {"train": self.train, "val": VAL, "test": TEST}
        splits = {split: [next(rest) for _ in names] for split, names in sides.items()}
        words = {6: "six", 7: "seven", 9: "nine"}  # as in the manifests that exist
        count = words.get(len(photographs), str(len(photographs)))
        release = f"demo: {count} photographs shipped with {SHIPPERS}, cut into crops"
        return crop_plan(splits, 3, request, release)


def locate(package: str, file: str) -> Path:
    """Path of a file shipped inside an installed package."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f'the demo needs {PACKAGES[package]}, which is not installed: pip install "dualscore[data]"'
        )
    path = Path(spec.submodule_search_locations[0], file)
    if not path.is_file():
        raise DataError(f"{path} is missing from {PACKAGES[package]}: reinstall it with pip")
    return path

"""What images are prepared from: one file a kind of source."""

from data_prep.plan import Source
from data_prep.sources.bsds300 import Bsds300
from data_prep.sources.bsds500 import Bsds500
from data_prep.sources.cifar10 import Cifar10
from data_prep.sources.demo import HALVES, Demo
from data_prep.sources.folder import Folder
from data_prep.sources.imagenet import Imagenet
from data_prep.sources.imagenet64_png import Imagenet64Png
from data_prep.sources.wallpapers import Wallpapers

SOURCES: dict[str, Source] = {
    "demo": Demo(),
    **{name: Demo(photographs) for name, photographs in HALVES.items()},
    "folder": Folder(),
    "bsds500": Bsds500(),
    "bsds300": Bsds300(),
    "imagenet64": Imagenet(64),
    "imagenet32": Imagenet(32),
    "imagenet64_png": Imagenet64Png(),
    "photographs": Wallpapers(),
    "cifar10": Cifar10(),
}

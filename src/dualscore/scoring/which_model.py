"""Which model the words of `dualscore score` name, and which images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dualscore.errors import ScoreError
from dualscore.model import ImageModel
from dualscore.model_files.loading import holds_model, load
from dualscore.pictures.walk import is_picture
from dualscore.scoring.image_files import check_given
from dualscore.scoring.stored_pixels import is_tar
from dualscore.scoring.whole_photographs import of_any_size
from dualscore.shipped.boxed import BOXED

MODEL_ENDINGS = (".ckpt", ".safetensors", ".pth.tar", ".pth", ".pt")


@dataclass(frozen=True)
class Asked:
    """What is to be scored with what."""

    path: Path | None  # of the model; None for those in the box
    model: ImageModel | None  # it, where it is not in the box
    images: list[Path]
    any_size: bool  # whether they are scored as they are

    def refuse(self, **given: object) -> None:
        """Refuse options that a model of one size does not know."""
        for name, value in given.items():
            if value:
                raise ScoreError(
                    f"--{name}: is for photographs scored as they are, and {self.path} is a model of one "
                    "size, or was asked to --resize or --normalize"
                )


def which(words: Sequence[Path], out: Path, *, resize: bool, normalize: bool) -> Asked:
    """Tell a model from images: the first word is one if it has a model, or its name is a model's file.

    Images that are not there, and results that would lie among them, are refused before a model is read.
    """
    first, rest = words[0], list(words[1:])
    if not _names_model(first, bool(rest)):
        if resize or normalize:
            raise ScoreError("--resize, --normalize: name a model first; those in the box take any image")
        return Asked(None, None, list(words), any_size=True)
    if not rest:
        raise ScoreError(f"{first}: is a model; name images to score with it")
    check_given(rest, out)
    model = load(first)
    return Asked(first, model, rest, of_any_size(model) and not (resize or normalize))


def _names_model(word: Path, more: bool) -> bool:
    if str(word).endswith(MODEL_ENDINGS):
        return True
    if word.is_dir():
        return holds_model(word)
    if word.exists():
        # A checkpoint may have any name; what follows it are images then.
        return more and not is_picture(word.name) and not is_tar(word)
    # A picture that is missing is told as such; so is a run that is not there.
    return str(word) in BOXED or (more and not is_picture(word.name) and not is_tar(word))


def part_of(text: str | None, devices: int) -> tuple[int, int]:
    """K and N of --part K/N; (1, 1) where all is one part."""
    if text is None:
        return 1, 1
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if found is None or int(found[1]) > int(found[2]):
        raise ScoreError(f"--part {text}: must be K/N, with K from 1 to N, such as 3/16")
    if devices > 1:
        raise ScoreError("--part and --devices: give one of them; a part is scored by one process")
    return int(found[1]), int(found[2])

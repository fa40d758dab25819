"""`dualscore decompress`: the pictures of a file, each as it was, or not at all."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from dualscore.bars import counted
from dualscore.coding import NoiseLevels
from dualscore.compression.coders import Coders, one_thread
from dualscore.compression.container import CodedModel, Contents, as_png, unpack
from dualscore.compression.decoder import RawTiles, restore
from dualscore.errors import CodingError
from dualscore.files.aside import sha256, write_aside
from dualscore.model_files.loading import load, locate
from dualscore.pictures.walk import trouble
from dualscore.scoring.image_files import Problems

NAMED = 5
"""Images that an error names."""


def decompress(path: Path, out: Path, console: Console, given: Sequence[Path] = ()) -> list[str]:
    """Write the pictures of a file into a folder as PNG.

    Args:
        path: the file.
        out: the folder.
        console: where it is told what could not be read.
        given: models, where those that the file names are not where they were.

    Returns:
        What was done, for people.

    Raises:
        CodingError: if the file is damaged, of which its whole images are written before; if a model is
            missing; or if this machine computes a model differently.
    """
    contents, stacks, raw = unpack(path)
    if out.exists() and not out.is_dir():
        raise CodingError(f"--out {out}: is no folder")
    refuse_if_nothing_is_left(path, contents, stacks)
    with one_thread():
        digests = {model.sha256 for model in contents.models}
        for place in given:
            file = locate(place)
            if trouble(file) is None and sha256(file) not in digests:
                raise CodingError(f"--model {place}: {path} was coded with none such")
        coders = [_coders(model, contents, path, given) for model in contents.models]
        _test(contents, coders, path)
        written, problems = 0, Problems()
        with counted(console, "decoded") as advance:
            for restored in restore(contents, coders, stacks, RawTiles(contents, raw)):
                advance(1)
                name = restored.picture.name
                if restored.pixels is None:
                    problems.add([(name, restored.problem)])
                    continue
                pixels = restored.pixels[:1] if not restored.picture.rgb else restored.pixels
                if restored.picture.rgb and len(pixels) == 1:
                    pixels = pixels.repeat(3, axis=0)
                try:
                    _write(out, as_png(name), pixels)
                    written += 1
                except CodingError as error:
                    problems.add([(name, str(error))])
                except OSError as error:
                    problems.add([(name, f"cannot be written: {error.strerror}")])
    if problems.count:
        problems.tell(console)
        raise CodingError(
            f"{path}: {problems.count:,} of {len(contents.pictures):,} images are not written; "
            f"the first, {problems.first}"
        )
    many = "one image" if written == 1 else f"{written:,} images"
    return [f"{out}: {many}, every pixel as it was"]


def refuse_if_nothing_is_left(
    path: Path, contents: Contents, stacks: Sequence[NDArray[np.uint32] | None]
) -> None:
    """A CodingError where no stack is as it was written: no model need be read."""
    if stacks and all(stack is None for stack in stacks):
        names = ", ".join(picture.name for picture in contents.pictures[:NAMED])
        raise CodingError(
            f"{path}: is damaged: none of its {len(contents.pictures):,} images can be read: {names}"
            f"{', …' if len(contents.pictures) > NAMED else ''}"
        )


def _write(out: Path, name: str, pixels: NDArray[np.uint8]) -> None:
    path, content = out / name, io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(content, "PNG")
    written = content.getvalue()
    there = next(folder for folder in (*path.parents, Path()) if folder.exists())
    if not there.resolve().is_relative_to(out.resolve()) and out.exists():
        raise CodingError(f"{there} lies elsewhere, by a link; name another folder")
    if path.exists():
        if path.is_file() and path.read_bytes() == written:
            return
        raise CodingError(f"{path} is there, and is something else; name another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, written, flush=False)


def _coders(model: CodedModel, contents: Contents, path: Path, given: Sequence[Path]) -> Coders:
    """The model that a file names by its checksum, wherever it is."""
    for place in (*given, Path(model.name)):
        file = locate(place)
        if trouble(file) is not None or sha256(file) != model.sha256:
            continue
        loaded = load(place)
        if not loaded.t_min <= model.t0 < model.t1 <= loaded.t_max:
            raise CodingError(f"{path}: is damaged: {model.name} knows no such noise levels")
        levels = NoiseLevels(model.t0, model.t1, contents.levels)
        side = None if loaded.any_size or loaded.image_shape is None else loaded.image_shape[1:]
        if side != model.side or loaded.image_shape is None or loaded.image_shape[0] != model.channels:
            raise CodingError(f"{path}: is damaged: {model.name} is a model of other images than it says")
        return Coders(loaded, levels, contents.double, contents.orientations)
    raise CodingError(
        f"{path}: was coded with {model.name}, whose file has the SHA-256 {model.sha256}; it is not there: "
        "name it with --model"
    )


def _test(contents: Contents, coders: Sequence[Coders], path: Path) -> None:
    for model, coder in zip(contents.models, coders, strict=True):
        if coder.self_test(model.side) != model.self_test:
            raise CodingError(
                f"{path}: cannot be decoded here: this machine, or PyTorch {torch.__version__} (it was coded "
                f"with {contents.torch}), rounds {model.name} otherwise, and other pixels would come out. "
                "Decode it where it was coded; files made with --double hardly depend on it"
            )

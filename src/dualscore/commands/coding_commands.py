"""Commands of files of images: compress, decompress."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from dualscore.commands.options import ModelAndImages, Results, positive
from dualscore.terminal.boxes import Plan
from dualscore.terminal.console import shared_console


def compress(
    words: ModelAndImages,
    *,
    out: Annotated[Path, "the file (default: %(default)s)", {"metavar": "FILE"}] = Path("images.dual"),
    levels: Annotated[
        int, "noise levels: more of them, fewer bits (default: %(default)s)", {"type": positive}
    ] = 100,
    double: Annotated[
        bool, "the network in double precision: other machines' rounding hardly matters"
    ] = False,
    orientations: Annotated[
        bool, "the mean of four orientations' denoisers: fewer bits in four times the time"
    ] = False,
    codecs: Annotated[bool, "PNG, WebP and JPEG XL of the same images beside it"] = False,
    dry_run: bool = False,
) -> Plan | None:
    """Images as a file of as many bits as the bound says."""
    from dualscore.compression.compress_images import CompressOptions
    from dualscore.compression.compress_images import compress as code
    from dualscore.scoring.which_model import which

    asked = which(words, out, resize=False, normalize=False)
    options = CompressOptions(levels, double, orientations, codecs)
    if dry_run:
        from dualscore.commands import planning_photographs as planning

        return Plan("compress", planning.compress(asked, out, options))
    console = shared_console()
    console.results(code(asked.path, asked.images, out, console, options, asked.model).report)
    return None


def decompress(
    file: Annotated[Path, "a file that compress wrote"],
    *,
    out: Results = Path("decompressed"),
    model: Annotated[
        Sequence[Path],
        "models, where those that the file names are not where they were",
        {"metavar": "MODEL"},
    ] = (),
    dry_run: bool = False,
) -> Plan | None:
    """The images of such a file, every pixel as it was."""
    from dualscore.compression.decompress_file import decompress as decode

    if dry_run:
        from dualscore.commands import planning_photographs as planning

        return Plan("decompress", planning.decompress(file, out))
    shared_console().results(decode(file, out, shared_console(), model))
    return None

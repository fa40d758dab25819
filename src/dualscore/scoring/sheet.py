"""Heat maps, and one picture of the most and the least probable images."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dualscore.files.plain_text import printable
from dualscore.pictures.heat import COLOURS
from dualscore.scoring.tables import Row

THUMBNAIL, COLUMNS, MARGIN, LINE = 96, 6, 10, 17
"""Pixels of a thumbnail's side at least, cells a row, pixels between them, and of a line of text."""
TEXT, LETTER = 13, 7
"""Pixels of the letters' height, and of their mean width."""
BAR = 160
"""Pixels of the colour bar."""
T = TypeVar("T")


@dataclass(frozen=True)
class Thumbnail:
    """What the sheet shows of an image."""

    row: Row
    image: NDArray[np.uint8]
    """Shape (H, W, 3)."""
    heat: NDArray[np.uint8]
    """Shape (H, W, 3)."""


@dataclass
class Extremes:
    """Keeps the k images of the fewest and the k of the most bits/dim, however many come.

    Args:
        k: how many of each.
    """

    k: int
    seen: int = field(default=0, init=False)
    _most: list[tuple[float, int, Thumbnail]] = field(default_factory=list, init=False)
    _least: list[tuple[float, int, Thumbnail]] = field(default_factory=list, init=False)

    def add(self, bits: float, make: Callable[[], Thumbnail]) -> None:
        """Show an image.

        Args:
            bits: its bits/dim, finite.
            make: gives its thumbnail; called only if it is kept.
        """
        self.seen += 1
        sides = [(self._least, bits), (self._most, -bits)]
        wanted = [(heap, key) for heap, key in sides if len(heap) < self.k or key > heap[0][0]]
        if wanted:
            thumbnail = make()
            for heap, key in wanted:
                (heapq.heappush if len(heap) < self.k else heapq.heapreplace)(
                    heap, (key, -self.seen, thumbnail)
                )

    def sorted(self) -> list[Thumbnail]:
        """Those kept, the most probable first, each once; equals in the order they came in."""
        kept = {-number: (bits, -number, item) for bits, number, item in self._least}
        kept |= {-number: (-key, -number, item) for key, number, item in self._most}
        return [item for _, _, item in sorted(kept.values(), key=lambda entry: entry[:2])]


def heading(shown: int, seen: int) -> str:
    """What stands above the images: how many of how many they are, and what is below each."""
    which = f"the {shown} images" if seen == shown else f"the extremes of {seen:,} images"
    order = "the image" if seen == 1 else f"{which}, the most probable first"
    return f"{order}: bits/dim, file"


def draw_sheet(shown: Sequence[Thumbnail], seen: int, scale: tuple[float, float]) -> Image.Image:
    """Draw images and their heat maps side by side, the most probable first.

    Args:
        shown: in the order to be drawn, one or more.
        seen: how many images there were.
        scale: of the heat maps, in bits a dimension.

    Returns:
        The picture.
    """
    height, width = shown[0].image.shape[:2]
    factor = max(1, THUMBNAIL // max(height, width))
    cell = (2 * width * factor + 2, height * factor + 2 * LINE)
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    size = (
        max(columns * (cell[0] + MARGIN) + MARGIN, 560),
        rows * (cell[1] + MARGIN) + 2 * MARGIN + 3 * LINE,
    )
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    pen.font = ImageFont.load_default(TEXT)
    pen.text((MARGIN, MARGIN), heading(len(shown), seen), fill="black")
    pen.text(
        (MARGIN, MARGIN + LINE), "right of each: where its bits are, per pixel and channel", fill="black"
    )
    _draw_bar(sheet, pen, scale)
    for number, thumbnail in enumerate(shown):
        x = MARGIN + number % columns * (cell[0] + MARGIN)
        y = 2 * MARGIN + 3 * LINE + number // columns * (cell[1] + MARGIN)
        for column, pixels in enumerate((thumbnail.image, thumbnail.heat)):
            picture = Image.fromarray(pixels).resize(
                (width * factor, height * factor), Image.Resampling.NEAREST
            )
            sheet.paste(picture, (x + column * (width * factor + 2), y))
        name = printable(thumbnail.row.file).rpartition("/")[2]
        most = max(8, cell[0] // LETTER)
        name = name if len(name) <= most else f"…{name[1 - most :]}"
        pen.text((x, y + height * factor), f"{thumbnail.row.bits_per_dim:.3f}", fill="black")
        pen.text((x, y + height * factor + LINE), name, fill="black")
    return sheet


def _draw_bar(sheet: Image.Image, pen: ImageDraw.ImageDraw, scale: tuple[float, float]) -> None:
    """A colour bar of the heat maps, its ends named."""
    y = MARGIN + 2 * LINE
    low = f"{scale[0]:.2f}"
    x = MARGIN + int(pen.textlength(low)) + 6
    bar = np.broadcast_to(COLOURS[np.linspace(0, 255, BAR).round().astype(int)], (LINE - 6, BAR, 3))
    pen.text((MARGIN, y), low, fill="black")
    sheet.paste(Image.fromarray(bar), (x, y + 3))
    pen.text((x + BAR + 6, y), f"{scale[1]:.2f} bits", fill="black")

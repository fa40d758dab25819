"""What a file of images costs, and where it is more than the bound."""

import math
from pathlib import Path
from typing import Any

from dualscore.compression.container import Contents
from dualscore.compression.encoder import Encoder
from dualscore.evaluation.codecs import CODECS


def summarize(contents: Contents, encoder: Encoder, size: int, header: int) -> dict[str, Any]:
    """A file of `size` bytes, `header` of which are its list of images, in bits a pixel and channel."""
    costs = encoder.costs
    dimensions = costs.dimensions

    def rate(bits: float) -> float:
        return bits / dimensions

    inside = dimensions - costs.uncoded

    def share(bits: float) -> float | None:
        return bits / inside if inside else None

    code, levels, bound = (float(nats) / math.log(2.0) for nats in costs.nats)
    return {
        "models": [{"name": model.name, "sha256": model.sha256} for model in contents.models],
        "images": len(contents.pictures),
        "dimensions": dimensions,
        "bytes": size,
        "levels": contents.levels,
        "double": contents.double,
        "orientations": contents.orientations,
        "torch": contents.torch,
        "raw_tiles": len(contents.raw),
        "bits_per_dim": {
            "file": rate(8 * size),
            "header": rate(8 * header),
            "borrowed": rate(costs.borrowed),
            "raw": rate(8 * contents.raw_bytes),
            "coded": rate(costs.coded),
        },
        "of_what_was_coded": {
            "coded": share(costs.coded),
            "bound": share(bound),
            "noise levels": share(levels - bound),
            "lattice": share(code - levels),
            "coder": share(costs.coded - code),
        },
    }  # fmt: skip


def lines(summary: dict[str, Any], out: Path) -> list[str]:
    """The same for people."""
    bits, inside = summary["bits_per_dim"], summary["of_what_was_coded"]
    many = "one image" if summary["images"] == 1 else f"{summary['images']:,} images"
    found = [
        f"{out}: {many}, {summary['bytes']:,} bytes; every tile was decoded, and is the same",
        f"in the file              {bits['file']:.4f} bits/dim",
        f"  names and checksums    {bits['header']:.4f}",
        f"  borrowed, once a stack {bits['borrowed']:.4f}",
        f"  stored as they are     {bits['raw']:.4f}  ({summary['raw_tiles']:,} tiles that failed)",
        f"  coded                  {bits['coded']:.4f}",
    ]
    if inside["bound"] is not None:
        found += [
            f"the bound of that        {inside['bound']:.4f}",
            f"  more than it           by noise levels {inside['noise levels']:+.4f}, "
            f"lattice {inside['lattice']:+.4f}, coder {inside['coder']:+.4f}",
        ]
    for name, figure in summary.get("codecs", {}).items():
        label = CODECS[name][0]
        shown = figure if isinstance(figure, str) else f"{figure:.4f}"
        found.append(f"{label:<24} {shown}")
    found.append("the model's weights are not counted: who decodes has them")
    return found

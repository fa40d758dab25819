"""Images that are coded and decoded: bits in a file, by the bound of the denoiser."""

import math

import torch

from dualscore.coding import BitsBack, NoiseLevels, OutOfRangeError, Stack, lent
from dualscore.likelihood.units import LEVELS
from dualscore.measuring.subject import Images, Rows, Subject

STEPS = 100
"""Noise levels of the code."""
_BITS_BORROWED = 16  # a number of an image, more than enough


def coded(subject: Subject, images: Images, span: tuple[float, float], steps: int) -> Rows:
    """Nats of each image on a stack of bits, and whether it came back the same; 8 bits a number where not.

    What the stack held before, the borrowed bits, is there again at the end, and is not counted.
    """
    clean = (images.clean * (LEVELS - 1)).round().to(torch.uint8).cpu()
    code = BitsBack(subject.model, subject.prior, NoiseLevels(*span, steps), images.clean)
    words = lent(clean.numel() * _BITS_BORROWED // 32 + 64, f"{subject.seed}, {images.position}")
    raw = math.log(LEVELS) * code.dimension
    stack = Stack(words)
    try:
        parts = code.push(stack, clean)
    except OutOfRangeError:
        if len(clean) == 1:
            return {"nats": torch.full((1,), raw), "whole": torch.zeros(1)}
        singly = [_one(images, place) for place in range(len(clean))]
        found = [coded(subject, image, span, steps) for image in singly]
        return {name: torch.cat([rows[name] for rows in found]) for name in found[0]}
    coder = (stack.bits - 32 * len(words)) * math.log(2.0) - float(parts.code.sum())
    back = code.pop(stack, len(clean))
    whole = (back == clean).flatten(1).all(dim=1) & stack.holds(words)
    nats = parts.code + coder / len(clean)
    return {"nats": torch.where(whole, nats, raw), "whole": whole.double()}


def _one(images: Images, place: int) -> Images:
    ordinal = None if images.ordinal is None else images.ordinal[place : place + 1]
    return Images(images.clean[place : place + 1], [images.position[place]], images.split, ordinal)

"""Normalized energy models of images, by dual score matching."""

from dualscore.checkpoints import load
from dualscore.model import ImageModel

__all__ = ["ImageModel", "load"]

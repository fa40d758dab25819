"""Normalized energy models of images, by dual score matching."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dualscore.checkpoints import load as load
    from dualscore.model import ImageModel as ImageModel
    from dualscore.saving import save as save

__all__ = ["ImageModel", "load", "save"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is asked for
    # On demand, so that preparing data or printing help does not wait for torch.
    if name == "load":
        from dualscore.checkpoints import load

        return load
    if name == "save":
        from dualscore.saving import save

        return save
    if name == "ImageModel":
        from dualscore.model import ImageModel

        return ImageModel
    raise AttributeError(f"module 'dualscore' has no attribute {name!r}")

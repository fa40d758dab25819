"""Energy models of images, by dual score matching."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dualscore.evaluation.store import kept_rows as kept_rows
    from dualscore.measuring.any_denoiser import measure as measure
    from dualscore.model import ImageModel as ImageModel
    from dualscore.model_files.loading import load as load
    from dualscore.publishing import save as save

    __version__: str

__all__ = ["ImageModel", "__version__", "kept_rows", "load", "measure", "save"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is asked for
    # On demand, so that preparing data or printing help does not wait for torch.
    if name == "load":
        from dualscore.model_files.loading import load

        return load
    if name == "save":
        from dualscore.publishing import save

        return save
    if name == "measure":
        from dualscore.measuring.any_denoiser import measure

        return measure
    if name == "kept_rows":
        from dualscore.evaluation.store import kept_rows

        return kept_rows
    if name == "ImageModel":
        from dualscore.model import ImageModel

        return ImageModel
    if name == "__version__":
        from dualscore.shipped import installed_version

        return installed_version()
    raise AttributeError(f"module 'dualscore' has no attribute {name!r}")

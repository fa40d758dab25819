"""Which dualscore this is."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """The version that was installed, as git told it; `0+unknown` with only the folder `src` on the path."""
    try:
        return version("dualscore")
    except PackageNotFoundError:
        return "0+unknown"

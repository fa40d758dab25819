"""What the package and data_prep share of tars."""

import tarfile

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def forget_members(tar: tarfile.TarFile) -> None:
    """Drop the list that tarfile keeps of all entries met: of a million small images it would not fit."""
    tar.members = []  # type: ignore[attr-defined]

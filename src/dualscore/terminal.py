"""The one terminal of a run: who may write to it, and what stays off it."""

import logging
import warnings

import rich
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console


def quiet() -> None:
    """Keep Lightning's hints about things that are as they should be off the terminal."""
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
        "lightning.fabric.utilities.rank_zero",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")
    warnings.filterwarnings("ignore", ".*IterableDataset.*__len__.*")
    warnings.filterwarnings("ignore", ".*`broadcast_buffers` is deprecated.*")
    warnings.filterwarnings("ignore", ".*`srun` command is available.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")


def rank() -> int:
    """This process among all."""
    # Set by Lightning's launchers before any Trainer exists.
    return int(getattr(rank_zero_only, "rank", None) or 0)


def shared_console() -> Console:
    """The console that progress bars draw on, so that lines appear above them; silent but on rank 0."""
    rich.reconfigure(quiet=rank() != 0)
    return rich.get_console()

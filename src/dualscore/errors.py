"""Errors meant for people: the command line prints each as one line, without a traceback.

Every message says what is wrong, where (file, key), and the way out. The classes take the message alone, so
that they travel between processes unchanged.
"""

import difflib
from collections.abc import Iterable


class DualscoreError(Exception):
    """Base of every error that is shown to users as one line."""

    status = 1
    """The process's exit status."""


class DataError(DualscoreError):
    """A data set, or what it is prepared from, is missing, damaged or of another format."""


class SourceError(DataError):
    """A data set's place cannot be reached, or gives something else than its manifest says."""


class ConfigError(DualscoreError):
    """A setting is unknown, missing or out of range."""


class CheckpointError(DualscoreError):
    """A checkpoint is missing, damaged or belongs to another run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint's content is not what was written."""


class ModelError(DualscoreError):
    """A model cannot be measured as it was given."""


class TrainingError(DualscoreError):
    """A training run cannot start or go on."""


class DivergenceError(TrainingError):
    """A loss, a gradient or the optimiser's own matrices are not finite any more."""

    status = 3


class StoppedError(DualscoreError):
    """A run was asked to stop, and the same command goes on with it. Not a failure."""

    status = 75
    """EX_TEMPFAIL: what batch scripts requeue a job for."""


class FigureError(DualscoreError):
    """A figure cannot be drawn."""


class ScoreError(DualscoreError):
    """Images cannot be scored."""


class SamplingError(DualscoreError):
    """A model cannot be sampled from."""


class FlowError(DualscoreError):
    """The probability flow of a model cannot be followed to its end."""


class CodingError(DualscoreError):
    """Images cannot be coded, or a file of them cannot be decoded."""


class ClusterError(DualscoreError):
    """A job cannot be submitted."""


class NormalizationError(DualscoreError):
    """An energy could not be normalized well enough to be called a likelihood."""

    status = 4


def did_you_mean(name: str, there: Iterable[str]) -> str:
    """`did you mean …? ` with the closest name, or nothing; for the way out."""
    close = difflib.get_close_matches(name, list(there), 1)
    return f"did you mean {close[0]}? " if close else ""

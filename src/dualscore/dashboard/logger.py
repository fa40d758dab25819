"""The log that TensorBoard reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from torch.utils.tensorboard import SummaryWriter

from dualscore.dashboard.tags import describe

BINS = 50
"""Of histograms."""


class PatientLogger(TensorBoardLogger):
    """A TensorBoard log whose writing may fail, as on a full disk: a warning, and training goes on.

    It lies in the run's folder itself, after which TensorBoard then names the run. Only the first process
    writes.

    Args:
        folder: the run's.
        step: entries from this step on are dropped, because they are logged again; 0 for none.
        warn: told of failures, ever more seldom.
    """

    def __init__(self, folder: Path, step: int, warn: Callable[[str], None]) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False, purge_step=step or None)
        self._warn, self._failures = warn, 0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers with what is said of them, if that can be written."""
        values = [
            Summary.Value(tag=tag, simple_value=float(value), metadata=_scalar(describe(tag)))
            for tag, value in metrics.items()
        ]
        self.log_summaries([Summary(value=values)], step)

    def log_summaries(self, summaries: Sequence[Summary], step: int | None) -> None:
        """Log entries as they are, if they can be written."""

        def put(writer: SummaryWriter) -> None:
            for summary in summaries:
                writer._get_file_writer().add_summary(summary, step)  # type: ignore[no-untyped-call]

        self.write(put)

    def log_text(self, name: str, text: str, step: int) -> None:
        """Log Markdown, if that can be written."""
        self.write(lambda writer: writer.add_text(name, text, step))

    def log_picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Log a picture (height, width, 3), if that can be written."""
        self.write(lambda writer: writer.add_image(name, picture, step, dataformats="HWC"))

    def log_histogram(self, name: str, values: NDArray[np.float64], step: int) -> None:
        """Log how values spread, in even bins, if that can be written; infinities and NaN are left out."""
        finite = values[np.isfinite(values)]
        if finite.size:
            self.write(lambda writer: writer.add_histogram(name, finite, step, bins=BINS))

    @rank_zero_only
    def write(self, put: Callable[[SummaryWriter], object]) -> None:
        """Log something else, if that can be written.

        Args:
            put: writes it with the writer it is given.
        """
        with self._patience():
            put(self.experiment)

    def save(self) -> None:
        """Flush, if that can be written; the settings are in config.yaml."""
        self.write(lambda writer: writer.flush())

    def finalize(self, status: str) -> None:
        """Close, if that can be written.

        Args:
            status: how the run ended.
        """
        with self._patience():
            super().finalize(status)

    @contextmanager
    def _patience(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._experiment = None  # whose thread is dead; the next entry opens another file
            self._kwargs.pop("purge_step", None)  # which must not drop what the first one has
            self._failures += 1
            if self._failures.bit_count() == 1:  # the 1st, 2nd, 4th, 8th, …: small entries may fit in between
                self._warn(
                    f"{self.save_dir}: the log is not written ({error.strerror or error}); "
                    "training goes on, unlogged"
                )


def _scalar(description: str) -> SummaryMetadata:
    plugin = SummaryMetadata.PluginData(plugin_name="scalars")
    return SummaryMetadata(plugin_data=plugin, summary_description=description)

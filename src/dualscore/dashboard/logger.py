"""The log that TensorBoard reads, and the names of what is in it."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from torch.utils.tensorboard import SummaryWriter

from dualscore.likelihood import Estimate

BINS = 50
"""Of histograms."""
BAND = 2.0
"""Standard errors from a figure to either edge of its band."""
STEP = "step = training step, counted from 0"
DESCRIPTIONS = {
    "val/bits_per_dim": "Bits/dim of validation images by the paper's protocol: one evaluation at t = 0.",
    "val/bound": "Estimated upper bound on −log2 P in bits/dim, of the denoiser's diffusion.",
    "val/log_normalizer": "log Z in nats: how far from normalized the network's energies are.",
    "final/": "The evaluation after training, of the best checkpoint, in bits/dim.",
    "gaussian/stationary": "Bits/dim of the training images' stationary Gaussian on the same images.",
    "gaussian/full_covariance": "Bits/dim of the Gaussian with a full covariance, from the evaluation.",
    "published/": "Published figures of others, in bits/dim of the same data set; docs/reproduce.md.",
    "space_loss/": "Space (denoising) loss at one input PSNR; it is d_eff/d.",
    "time_loss/": "Time loss at one input PSNR; at best 1/(2d) or below.",
    "psnr/": "PSNR in dB of denoised validation images at one input PSNR.",
    "psnr_gain_linear/": "dB above the best linear denoiser (Wiener's filter of the training images' "
    "spectrum), same images, same noise.",
    "psnr_gain_score_network/": "dB above the score network that the text `run/about` names, same images, "
    "same noise; for ImageNet64 the published one.",
    "effective_dimension/": "d_eff = E‖x − x̂‖²/t in dimensions, from the denoiser's error.",
    "train/stall": "Fraction of the time that training waits for images.",
    "train/images_per_second": "Over all devices, validations left out.",
    "train/learning_rate": "Of the network's weights.",
    "train/largest_gradient_norm": "The largest since the entry before.",
    "train/skipped_steps": "Steps left out so far in this process, because their gradient was not finite.",
    "data/skipped_images": "Unreadable training images of this epoch, which others took the place of.",
    "events/": "How often it happened in this run so far; the text `run/events` says when and why.",
}  # fmt: skip


def describe(tag: str) -> str:
    """What TensorBoard says of a curve; empty where its name says all."""
    found = [text for prefix, text in DESCRIPTIONS.items() if tag.startswith(prefix)]
    return f"{found[0]} ({STEP}.)" if found else ""


def level(psnr_in: float) -> str:
    """How a noise level is named in tags: its input PSNR in dB."""
    return f"{round(psnr_in, 1):+03g}dB"


def band(tag: str, estimate: Estimate) -> Iterator[tuple[str, float]]:
    """Tags and values of a figure and, where it has a standard error, of the edges of its band."""
    yield tag, estimate.value
    if not math.isnan(estimate.stderr):
        yield f"{tag}_low", estimate.value - BAND * estimate.stderr
        yield f"{tag}_high", estimate.value + BAND * estimate.stderr


class PatientLogger(TensorBoardLogger):
    """A TensorBoard log whose writing may fail, as on a full disk: a warning, and training goes on.

    It lies in the run's folder itself, after which TensorBoard then names the run. Only the first process
    writes. Entries from `step` on are dropped, because they are logged again; 0 drops none.
    """

    def __init__(self, folder: Path, step: int, warn: Callable[[str], None]) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False, purge_step=step or None)
        self._warn, self._failures = warn, 0
        tell = threading.excepthook

        def tell_others(failed: threading.ExceptHookArgs) -> None:
            # TensorBoard's thread raises its error at the next entry, too: there it becomes the warning.
            theirs = type(failed.thread).__module__.startswith("tensorboard.")
            if not (theirs and isinstance(failed.exc_value, OSError)):
                tell(failed)

        threading.excepthook = tell_others

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers, with their descriptions."""
        plugin = SummaryMetadata.PluginData(plugin_name="scalars")
        values = []
        for tag, value in metrics.items():
            described = SummaryMetadata(plugin_data=plugin, summary_description=describe(tag))
            values.append(Summary.Value(tag=tag, simple_value=float(value), metadata=described))
        self.log_summaries([Summary(value=values)], step)

    def log_summaries(self, summaries: Sequence[Summary], step: int | None) -> None:
        """Log entries as they are."""

        def put(writer: SummaryWriter) -> None:
            for summary in summaries:
                writer._get_file_writer().add_summary(summary, step)  # type: ignore[no-untyped-call]

        self.write(put)

    def log_text(self, name: str, text: str, step: int) -> None:
        """Log Markdown."""
        self.write(lambda writer: writer.add_text(name, text, step))

    def log_picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Log a picture (height, width, 3)."""
        self.write(lambda writer: writer.add_image(name, picture, step, dataformats="HWC"))

    def log_histogram(self, name: str, values: NDArray[np.float64], step: int) -> None:
        """Log how values spread, in even bins; infinities and NaN are left out."""
        finite = values[np.isfinite(values)]
        if finite.size:
            self.write(lambda writer: writer.add_histogram(name, finite, step, bins=BINS))

    @rank_zero_only
    def write(self, put: Callable[[SummaryWriter], object]) -> None:
        """Log with TensorBoard's own writer, if the disk takes it."""
        with self._patience():
            put(self.experiment)

    def save(self) -> None:
        """Flush; the settings are in config.yaml."""
        self.write(lambda writer: writer.flush())

    def finalize(self, status: str) -> None:
        """Close the log."""
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

"""What happened to a run, in its log: restarts, steps left out, images that could not be read."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer

from dualscore.data.datamodule import ImageDataModule
from dualscore.data.epoch_plan import locate
from dualscore.errors import DataError
from dualscore.files.plain_text import one_line
from dualscore.redaction import redact
from dualscore.training.lightning_module import DualScoreModule, TrainingCallback, is_logged, logged_step

KINDS = ("resumed", "skipped_steps", "rollbacks", "unreadable_images", "failed_writes")
SHOWN = 200
"""Events that are kept, the latest."""


class Journal(TrainingCallback):
    """Logs `events/…`, how often each kind of event happened, `train/minutes`, and the text `run/events`.

    All of it goes on with the run; `before` says how the run ended before it was resumed, None for a new one.
    Other callbacks write events down through `recording`. `show` takes a name, Markdown and the step; `flush`
    makes sure that what was shown is on disk.
    """

    def __init__(
        self, show: Callable[[str, str, int], None], flush: Callable[[], None], before: str | None
    ) -> None:
        self.show, self.flush, self._before = show, flush, before
        self.counts = dict.fromkeys(KINDS, 0)
        self.entries: list[tuple[int, str, str]] = []
        self._seconds, self._since = 0.0, time.monotonic()
        self._trainer: Trainer | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts), "entries": list(self.entries), "seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.counts |= state_dict["counts"]
        self.entries = [(int(step), kind, what) for step, kind, what in state_dict["entries"]]
        self._seconds = float(state_dict["seconds"])

    def recording(self, kind: str, warn: Callable[[str], None]) -> Callable[[str], None]:
        """`warn`, which also writes down an event, one of `KINDS`."""

        def record(message: str) -> None:
            self.note(kind, message)
            warn(message)

        return record

    def note(self, kind: str, message: str) -> None:
        """Write an event down."""
        step = self._trainer.global_step if self._trainer is not None else 0
        if kind in self.counts:
            self.counts[kind] += 1
        self.entries.append((step, kind.replace("_", " "), redact(one_line(message))))
        del self.entries[:-SHOWN]
        if kind != "failed_writes":  # of which there would be another one
            self._show()

    def on_train_start(self, trainer: Trainer, *_: object) -> None:
        self._trainer, self._since = trainer, time.monotonic()
        if self._before is not None:
            self.note("resumed", f"goes on from step {trainer.global_step:,}; before: {self._before}")
        else:
            self._show()

    def after_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        for kind, count in self.counts.items():
            module.log(f"events/{kind}", float(count))
        module.log("train/minutes", self._elapsed() / 60.0)

    def on_exception(self, trainer: Trainer, pl_module: object, exception: BaseException) -> None:
        # Not kept by a checkpoint: a run that goes on says how it ended before.
        self.note("stopped", str(exception) or type(exception).__name__)
        self.flush()

    def _elapsed(self) -> float:
        return self._seconds + (time.monotonic() - self._since if self._trainer is not None else 0.0)

    def _show(self) -> None:
        rows = ["| step | event | what |", "| --- | --- | --- |"]
        for step, kind, what in reversed(self.entries):
            cell = what.replace("|", "\\|").replace("<", "&lt;")
            rows.append(f"| {step:,} | {kind} | {cell} |")
        nothing = "Nothing: no step was left out, no image replaced, no restart."
        shown = "\n".join(rows) if self.entries else nothing
        self.show("run/events", shown, logged_step(self._trainer) if self._trainer is not None else 0)


class SkippedImages(TrainingCallback):
    """Logs `data/skipped_images` of the epoch over all devices, warns once a shard, and keeps a limit.

    A single device looks before every step. Several look together before every entry in the log and every
    validation, so that none of them waits, and no checkpoint is written beyond the limit.
    """

    def __init__(self, limit: int, datamodule: ImageDataModule, warn: Callable[[str], None]) -> None:
        self.limit, self.warn = limit, warn
        self._datamodule = datamodule
        self._epoch = 0
        self._positions: list[int] = []  # of images that could not be read in this epoch
        self._warned: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "positions": list(self._positions)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._epoch, self._positions = state_dict["epoch"], list(state_dict["positions"])

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.world_size == 1 or is_logged(trainer):
            self._look(trainer)

    def after_step(self, trainer: Trainer, module: DualScoreModule) -> None:
        if self._datamodule.training_shards and is_logged(trainer):
            module.log("data/skipped_images", float(len(self._positions)))

    def before_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        """Count what all devices have lost since the last time."""
        lost, self._datamodule.unreadable = self._datamodule.unreadable, []
        if trainer.world_size > 1:
            everyones: list[list[tuple[int, int]]] = [[]] * trainer.world_size
            torch.distributed.all_gather_object(everyones, lost)
            lost = sorted(pair for part in everyones for pair in part)
        path, shards = self._datamodule.path, self._datamodule.training_shards
        fresh: dict[str, int] = {}
        for epoch, position in lost:
            self._begin(epoch)
            self._positions.append(position)
            shard, entry = locate(shards, position)
            if shard.file not in self._warned:
                fresh.setdefault(shard.file, entry)
            if (total := len(self._positions)) > self.limit:
                file, count = self._shards().most_common(1)[0]
                raise DataError(
                    f"{path}/{file}: {count} images cannot be read, {total} in all in this epoch, more than "
                    f"data.max_skipped={self.limit}; see which with make verify-data OUT={path}, and prepare "
                    "or copy the data set again"
                )
        self._begin(self._datamodule.epoch_read)
        self._warned |= fresh.keys()
        for file, entry in fresh.items():
            self.warn(
                f"{path}/{file}: entry {entry} cannot be read; other images take the place of "
                f"{self._shards()[file]} of this shard so far; see make verify-data OUT={path}"
            )

    def _begin(self, epoch: int) -> None:
        """Forget the epochs before this one."""
        if epoch > self._epoch:
            self._epoch, self._positions = epoch, []

    def _shards(self) -> Counter[str]:
        """How many images of each shard's file were lost in this epoch."""
        shards = self._datamodule.training_shards
        return Counter(locate(shards, position)[0].file for position in self._positions)

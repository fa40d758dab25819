"""What happened to a run: counts as curves, and a table that says when and why."""

import time
from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from dualscore.redaction import redact
from dualscore.training.callbacks.steps import logged_step

KINDS = ("resumed", "skipped_steps", "rollbacks", "unreadable_images", "failed_writes")
SHOWN = 200
"""Events that are kept, the latest."""


class Journal(Callback):
    """Logs `events/…`, how often each kind of event happened, `train/minutes`, and the text `run/events`.

    All of it goes on with the run. Other callbacks tell it what happens through `telling`.

    Args:
        show: takes a name, Markdown and the step.
        flush: makes sure that what was shown is written.
        before: how the run ended before it goes on here, for people; None where it starts.
    """

    def __init__(
        self, show: Callable[[str, str, int], None], flush: Callable[[], None], before: str | None
    ) -> None:
        self.show, self.flush, self._before = show, flush, before
        self.counts = dict.fromkeys(KINDS, 0)
        self.entries: list[tuple[int, str, str]] = []
        self._seconds, self._since = 0.0, time.monotonic()
        self._trainer: lightning.Trainer | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts), "entries": list(self.entries), "seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.counts |= state_dict["counts"]
        self.entries = [(int(step), kind, what) for step, kind, what in state_dict["entries"]]
        self._seconds = float(state_dict["seconds"])

    def telling(self, kind: str, warn: Callable[[str], None]) -> Callable[[str], None]:
        """A warning that is written down too.

        Args:
            kind: one of `KINDS`.
            warn: tells people.

        Returns:
            What takes a message.
        """

        def tell(message: str) -> None:
            self.note(kind, message)
            warn(message)

        return tell

    def note(self, kind: str, message: str) -> None:
        """Write an event down."""
        step = self._trainer.global_step if self._trainer is not None else 0
        if kind in self.counts:
            self.counts[kind] += 1
        self.entries = [*self.entries, (step, kind.replace("_", " "), redact(" ".join(message.split())))]
        self.entries = self.entries[-SHOWN:]
        if kind != "failed_writes":  # of which there would be another one
            self._show()

    def on_train_start(self, trainer: lightning.Trainer, *_: object) -> None:
        self._trainer, self._since = trainer, time.monotonic()
        if self._before is not None:
            self.note("resumed", f"goes on from step {trainer.global_step:,}; before: {self._before}")
        else:
            self._show()

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        for kind, count in self.counts.items():
            pl_module.log(f"events/{kind}", float(count))
        pl_module.log("train/minutes", self._elapsed() / 60.0)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        # Not kept by a checkpoint: a run that goes on says how it ended before.
        self.note("stopped", str(exception) or type(exception).__name__)
        self.flush()

    def _elapsed(self) -> float:
        return self._seconds + (time.monotonic() - self._since if self._trainer is not None else 0.0)

    def _show(self) -> None:
        rows = [f"| {step:,} | {kind} | {_cell(what)} |" for step, kind, what in reversed(self.entries)]
        table = "\n".join(["| step | event | what |", "| --- | --- | --- |", *rows])
        shown = table if rows else "Nothing: no step was left out, no image replaced, no restart."
        step = logged_step(self._trainer) if self._trainer is not None else 0
        self.show("run/events", shown, step)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")

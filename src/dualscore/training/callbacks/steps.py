"""When callbacks act: at the end of a step, and when something is logged."""

import lightning


def logged_step(trainer: lightning.Trainer) -> int:
    """The step that what a validation finds is logged at: counted from 0, as Lightning does.

    A run that goes on from the checkpoint of a validation drops what was logged at later ones.
    """
    return max(0, trainer.global_step - 1)


def ends_step(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Whether a step was made with a batch, which may be but a part of one."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def is_logged(trainer: lightning.Trainer) -> bool:
    """Whether this step has an entry in the log."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return trainer.global_step % every == 0

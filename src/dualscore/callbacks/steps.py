"""When callbacks act: at the end of a step, and when something is logged."""

import lightning


def ends_step(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Whether a step was made with a batch, which may be but a part of one."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def is_logged(trainer: lightning.Trainer) -> bool:
    """Whether this step has an entry in the log."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return trainer.global_step % every == 0

"""A study times the steps that its runs take: accumulated, compiled and rounded as they are."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dualscore.objective import dual_score_matching
from dualscore.settings.experiment import load_experiment
from dualscore.study import run_variants
from dualscore.training import trainer
from workspace import ROOT, TINY


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """How each call of a loss was made: compiled or not, on how many images, rounded to TF32 or not."""
    calls: list[tuple[str, int, bool]] = []

    def watched(how: str) -> Callable[..., Any]:
        def loss(model: Any, clean: torch.Tensor, *rest: Any, **more: Any) -> Any:
            calls.append((how, len(clean), torch.backends.cuda.matmul.allow_tf32))
            return dual_score_matching(model, clean, *rest, **more)

        return loss

    original = run_variants.build

    def build(config: Any) -> Any:
        module, datamodule = original(config)
        module.loss = watched("plain")
        return module, datamodule

    monkeypatch.setattr(run_variants, "build", build)
    monkeypatch.setattr(trainer, "compiled_loss", lambda _: watched("compiled"))
    monkeypatch.setattr(trainer, "obstacle", lambda _: None)
    for name, value in {"ROUNDS": 1, "WARM_UP": 1, "STEPS": 2}.items():
        monkeypatch.setattr(run_variants, name, value)
    return calls


@pytest.mark.parametrize(
    ("settings", "call", "each"),
    [
        ([], ("plain", 16, False), 1),
        (["trainer.accumulate=2"], ("plain", 8, False), 2),
        (["trainer.compile=true"], ("compiled", 16, False), 1),
        (["trainer.tf32=true", "trainer.accumulate=4"], ("plain", 4, True), 4),
    ],
    ids=str,
)
def test_a_variant_is_timed_as_it_trains(
    demo_shards: Path, seen: list[Any], settings: list[str], call: tuple[str, int, bool], each: int
) -> None:
    shared = [*TINY, f"data.path={demo_shards}", "data.workers=0"]
    config = load_experiment("patches_dual", [*shared, *settings], ROOT / "experiments")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        found = run_variants._seconds_per_step({"it": config}, lambda _: None)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert found["it"] > 0.0
    assert seen == [call] * (3 * each)


def test_the_clock_starts_behind_the_last_part_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(run_variants.time, "perf_counter", lambda: next(clock))
    for name, value in {"WARM_UP": 1, "STEPS": 2}.items():
        monkeypatch.setattr(run_variants, name, value)
    stopwatch = run_variants._Stopwatch()
    for part in range(12):  # Lightning counts a step of the optimiser before it ends the batch's last part
        place = SimpleNamespace(global_step=(part + 1) // 4, accumulate_grad_batches=4)
        stopwatch.on_train_batch_end(place, None, None, None, part)  # type: ignore[arg-type]
    assert next(clock) == 2  # looked at twice, not in every part
    assert stopwatch.seconds == 0.5

"""Step sizes follow chains that are not weighed, never those that are."""

import math

import pytest
import torch
from torch import Tensor

from dualscore.energy import EnergyModel, Gradients
from dualscore.sampling import annealed, sample_images
from dualscore.sampling.annealed import Annealed, anneal, levels
from dualscore.sampling.metropolis import Chain
from dualscore.sampling.sample_images import Method, inpaint, posterior, sample
from test_sampling import image_model

NARROW, WIDE, LAST, INSIDE = 0.02, 9.0, 0.01, 0.5


class NarrowAndWide(EnergyModel):
    """One pixel, of ½ N(0, 0.02) + ½ N(0, 9): long steps suit one part, short ones the other."""

    variances = torch.tensor([NARROW, WIDE], dtype=torch.float64)

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        y, v = noisy.reshape(-1, 1), self.variances + noise_variance.reshape(-1, 1)
        logs = math.log(0.5) - 0.5 * y * y / v - 0.5 * (2 * math.pi * v).log()
        share = logs.softmax(1)
        slope = (share * (0.5 / v - 0.5 * y * y / v**2)).sum(1)
        return Gradients((share * y / v).sum(1).reshape(noisy.shape), slope, -logs.logsumexp(1))


def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The step sizes, relative to the noise variance, that chains are then given."""
    taken: list[float] = []
    original = annealed.mala

    def mala(model: EnergyModel, images: Tensor, t: float, *, step_size: float, **more: object) -> Chain:
        taken.append(step_size / t)
        return original(model, images, t, step_size=step_size, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(annealed, "mala", mala)
    return taken


def chains(start: Tensor, pilots: int = 0) -> Annealed:
    generators = [torch.Generator().manual_seed(n) for n in range(len(start))]
    return anneal(
        NarrowAndWide(), start, levels(100.0, 14, LAST), generator=generators, steps=4, pilots=pilots
    )


def test_a_chain_is_the_same_whatever_is_weighed_beside_it() -> None:
    start = 10.0 * torch.randn(6, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together, alone = chains(start, pilots=2), chains(start[:3], pilots=2)
    assert together.images.shape[0] == 4
    assert together.log_weights is not None
    assert alone.log_weights is not None
    assert together.log_weights.shape == (4, 14)
    assert torch.equal(together.images[:1], alone.images)
    assert torch.equal(together.log_weights[:1], alone.log_weights)


def test_steps_follow_pilots_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = steps_taken(monkeypatch)
    start = 10.0 * torch.randn(6, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chains(start)
    assert taken == pytest.approx([1.65**2] * 13)
    taken.clear()
    chains(start, pilots=2)
    led, _ = taken.copy(), taken.clear()
    assert len({round(step, 6) for step in led}) > 5
    start[2:] += 50.0
    chains(start, pilots=2)
    assert taken == led


@pytest.mark.parametrize("kind", ["sample", "posterior", "inpaint"])
def test_all_metropolis_samples_have_pilots(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    taken, model = steps_taken(monkeypatch), image_model()
    clean = sample(model, 2, method=Method.flow).images
    known = torch.zeros(clean.shape[-2:], dtype=torch.bool)
    known[0] = True
    draw = {
        "sample": lambda: sample(model, 2, steps=10),
        "posterior": lambda: posterior(model, clean, 0.1, steps=10),
        "inpaint": lambda: inpaint(model, clean, known, steps=10),
    }[kind]
    found = draw()
    assert found.images.shape == clean.shape
    assert found.log_weight is not None
    assert found.log_weight.shape == (2,)
    assert len(set(taken)) > 5
    monkeypatch.setattr(sample_images, "PILOTS", 0)
    taken.clear()
    draw()
    assert max(taken) == pytest.approx(min(taken))


def test_shares_are_right_where_chains_that_led_themselves_had_them_wrong() -> None:
    """10,000 single chains that followed their own acceptance had 0.5845 ± 0.0052 within ½, for 0.5642."""
    count, generator = 20_000, torch.Generator().manual_seed(1)
    part = torch.rand(count, generator=generator) < 0.5
    spread = (NarrowAndWide.variances[part.long()] + 100.0).sqrt()
    start = (spread * torch.randn(count, generator=generator, dtype=torch.float64)).reshape(-1, 1, 1, 1)
    found = anneal(NarrowAndWide(), start, levels(100.0, 14, LAST), generator=generator, steps=4, pilots=4)
    assert found.log_weight is not None
    weight = found.log_weight.softmax(0)
    inside = (found.images.abs() < INSIDE).double().flatten()
    share = float(weight @ inside)
    stderr = float((weight * (inside - share)).square().sum().sqrt())
    exact = float(torch.erf(INSIDE / (2 * (NarrowAndWide.variances + LAST)).sqrt()).mean())
    assert stderr < 0.004
    assert share == pytest.approx(exact, abs=4 * stderr)

"""A restrained denoiser: inside it is the model's own, outside the nearest that a posterior mean can be."""

import torch
from torch import Tensor

from dualscore.energy import Gradients, ScoreModel
from dualscore.networks.restrained import BEYOND, LONGEST, Restrained, restrained
from test_causal_energy import shaken


class Given(ScoreModel):
    """A denoiser that says what it was given."""

    def __init__(self, denoised: Tensor) -> None:
        super().__init__()
        self.denoised = denoised

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        return Gradients((noisy - self.denoised) / noise_variance[:, None, None, None], None)


def test_no_number_is_moved_further_than_three_deviations_nor_out_of_the_range() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (3, 3, 20, 20), generator=generator).double() / 255.0
    t = torch.tensor([1e-7, 1e-3, 1.0], dtype=torch.float64)
    sigma = t.sqrt()[:, None, None, None]
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    guess = clean + 2.0 * sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    found = Restrained(Given(guess)).denoise(noisy, t)
    nearest = torch.minimum(torch.maximum(guess, noisy - LONGEST * sigma), noisy + LONGEST * sigma)
    torch.testing.assert_close(found, nearest.clamp(-BEYOND, 1.0 + BEYOND), atol=1e-12, rtol=0.0)
    moved = (found - guess).abs() > 1e-9
    assert 0.1 < float(moved.double().mean()) < 0.9


def test_only_energies_that_know_the_grey_levels_need_it() -> None:
    knows, knows_not = shaken(levels=256), shaken()
    assert isinstance(restrained(knows), Restrained)
    assert restrained(knows_not) is knows_not
    given = Given(torch.zeros(1))
    assert restrained(given) is given

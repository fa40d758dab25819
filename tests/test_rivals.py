"""The rivals of the study bench are what they say: what they may see, and that probabilities are ones."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.rivals import PixelCNN, Rival, TarFlow, WindowMLP
from dualscore.likelihood import dequantized_bits_per_dim
from workspace import ROOT


def shaken(rival: Rival) -> Rival:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in rival.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return rival.eval()


@pytest.mark.parametrize("make", [WindowMLP, lambda: PixelCNN(width=8, blocks=2)], ids=["mlp", "pixelcnn"])
def test_no_factor_sees_what_comes_later(make: Callable[[], Rival]) -> None:
    """Summed over all levels of the last pixel, P is what the factors of the others give.

    So they don't see it, and its own factor is a probability.
    """
    rival = shaken(make())
    image = torch.randint(0, 256, (1, 1, 3, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    every = image.repeat(256, 1, 1, 1)
    every[:, 0, 2, 2] = torch.arange(256, dtype=torch.uint8)
    with torch.no_grad():
        nats = rival.bits(every).double() * 9 * math.log(2.0)
    eight = -float(torch.logsumexp(-nats, dim=0))
    seen = _first_nats(rival, image, 8)
    assert eight == pytest.approx(seen, abs=1e-3)


def _first_nats(rival: Rival, image: Tensor, count: int) -> float:
    """Nats of the first pixels of one image, from the factors themselves."""
    with torch.no_grad():
        if isinstance(rival, WindowMLP):
            place = torch.arange(9)
            context = rival.model.context(image, torch.zeros(9, dtype=torch.long), place // 3, place % 3)
            return float(rival.model.nats(context)[:count].sum())
        assert isinstance(rival, PixelCNN)
        return float(-rival.mixture(image).log_probability(image[:, 0].long()).flatten()[:count].sum())


def test_the_flow_is_invertible_and_its_volume_is_that_of_its_jacobian(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow = shaken(TarFlow(4, flows=2, width=8, layers=1)).double()
    monkeypatch.setattr("benchmarks.rivals.dequantize", lambda pixels, _: pixels)
    found: list[Tensor] = []

    def normal(pixels: Tensor) -> Tensor:
        """The flow's last tokens, from what its figure is made of."""
        tokens = nn.functional.pixel_unshuffle(2.0 * pixels.view(1, 1, 4, 4) - 1.0, 2).flatten(2).mT
        for part, places in zip(flow.flows, flow.places, strict=True):
            seen = part["inside"](part["into"](tokens) + places, mask=flow.mask)  # type: ignore[index]
            seen = nn.functional.pad(part["out"](seen)[:, :-1], (0, 0, 1, 0))  # type: ignore[index]
            scale, shift = seen.chunk(2, dim=-1)
            tokens = ((tokens - shift) * torch.exp(3.0 * torch.tanh(scale / 3.0))).flip(1)
        found.append(tokens)
        return tokens.flatten()

    levels = torch.randint(
        0, 256, (1, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    pixels = (levels.float() / 255.0).double().flatten()
    jacobian = torch.autograd.functional.jacobian(normal, pixels)
    with torch.no_grad():
        monkeypatch.setattr(Tensor, "float", Tensor.double)
        bits = flow.bits(levels)
        tokens = normal(pixels)
    nats = 0.5 * (tokens.square() + math.log(2.0 * math.pi)).sum() - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(bits, dequantized_bits_per_dim(nats[None], 16), rtol=1e-5, atol=1e-5)


def test_the_table_is_made(official_shards: Callable[[str], Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rivals", "bsds16_causal",
         f"data.path={official_shards('bsds500')}", "--seconds", "0.5", "--images", "20"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "causal MLP" in done.stdout
    assert "TarFlow" in done.stdout
    assert "20 crops" in done.stdout

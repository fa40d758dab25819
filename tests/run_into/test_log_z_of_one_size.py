"""Log Z estimated on images of one size is not used for images of another."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dualscore
from dualscore.energy import Energy
from dualscore.errors import NormalizationError
from dualscore.model import ImageModel
from dualscore.networks import LogEmbedding, UNet
from test_released import DATA


def of_any_size() -> ImageModel:
    torch.manual_seed(0)
    return ImageModel(
        Energy(UNet(1, LogEmbedding(), width=4, scales=1, layers=2), None, []), t_max=10.0
    ).eval()


def images(height: int, width: int) -> Tensor:
    return torch.rand(4, 1, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("other", [(16, 16), (8, 16), (4, 16)], ids=str)
@pytest.mark.parametrize("ask", [ImageModel.log_prob, ImageModel.bits_per_dim])
def test_images_of_another_size_are_refused(
    other: tuple[int, int], ask: Callable[[ImageModel, Tensor], Tensor]
) -> None:
    model = of_any_size()
    model.normalize(images(8, 8))
    said = rf"on images of 1×8×8, and these are of 1×{other[0]}×{other[1]}: .*model\.normalize"
    with pytest.raises(NormalizationError, match=said):
        ask(model, images(*other))
    assert model.energy(images(*other)).isfinite().all()  # which needs no log Z
    assert ask(model, images(8, 8)).isfinite().all()
    model.normalize(images(*other))
    assert ask(model, images(*other)).isfinite().all()


def test_batches_of_several_sizes_give_no_log_z() -> None:
    model = of_any_size()
    with pytest.raises(ValueError, match="one size of images: there are 1×8×8 and 1×16×16"):
        model.normalize(iter([images(8, 8), images(16, 16)]))
    assert model.log_normalizer is None
    assert model.normalized_shape is None


def test_a_saved_model_keeps_the_size(tmp_path: Path) -> None:
    released = dualscore.load(DATA / "energy_small.pth.tar")
    assert released.image_shape is None
    colour = images(16, 16).expand(-1, 3, -1, -1)
    released.normalize(colour)
    dualscore.save(released, tmp_path / "made")
    read = dualscore.load(tmp_path / "made")
    assert read.image_shape == (3, 16, 16)
    assert torch.equal(read.log_prob(colour), released.log_prob(colour))
    with pytest.raises(ValueError, match=r"shape \(B, 3, 16, 16\)"):
        read.log_prob(images(8, 8).expand(-1, 3, -1, -1))

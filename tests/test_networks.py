"""The UNet: its size, its symmetry, its normalizations, what it refuses."""

import pytest
import torch

from dualscore.networks import LinearEmbedding, LogEmbedding, PixelNorm, UNet


@pytest.mark.parametrize(("channels", "parameters"), [(3, 8_649_856), (1, 8_647_552)])
def test_the_papers_network_has_the_published_number_of_parameters(channels: int, parameters: int) -> None:
    assert sum(p.numel() for p in UNet(channels, LinearEmbedding()).parameters()) == parameters


@pytest.mark.parametrize("layers", [2, 3, (1, 2, 1), (3, 4, 2)])
def test_output_has_the_inputs_shape(layers: int | tuple[int, int, int]) -> None:
    network = UNet(3, LogEmbedding(), width=4, scales=2, layers=layers)
    image = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    assert network(image, torch.tensor([0.0, 1e3])).shape == image.shape


def test_scaling_the_image_scales_the_output() -> None:
    """Degree-one homogeneity, exact where GELU is max(x, 0) and ε is nothing: on large values."""
    torch.manual_seed(0)
    network = UNet(1, LinearEmbedding(), width=8, scales=2).double()
    image = 1e12 * torch.randn(2, 1, 16, 16, dtype=torch.float64)
    t = torch.tensor([0.1, 10.0], dtype=torch.float64)
    assert torch.allclose(network(3 * image, t), 3 * network(image, t), rtol=1e-6)


def test_the_pixel_norm_forgets_contrast_place_by_place() -> None:
    """One half of an image a thousand times fainter than the other comes out alike."""
    torch.manual_seed(0)
    norm = PixelNorm(8, 16).double()
    with torch.no_grad():
        norm.shift.copy_(torch.arange(8.0))
    x = 1e7 * torch.randn(2, 8, 4, 4, dtype=torch.float64)
    embedding = torch.randn(2, 16, dtype=torch.float64)
    whole = norm(x, embedding)
    faint = torch.cat([x[..., :2], 1e-3 * x[..., 2:]], dim=3)
    assert torch.allclose(norm(faint, embedding), whole, rtol=1e-6, atol=1e-6)
    scale = norm.modulation(embedding)
    rms = x.square().mean(dim=1, keepdim=True).sqrt()
    expected = x / rms * (1 + scale)[:, :, None, None] + torch.arange(8.0)[:, None, None]
    assert torch.allclose(whole, expected, rtol=1e-6)


def test_with_the_pixel_norm_the_output_is_not_homogeneous() -> None:
    torch.manual_seed(0)
    network = UNet(1, LogEmbedding(), width=8, scales=2, norm=PixelNorm, outputs=2)
    image = torch.rand(2, 1, 16, 16)
    t = torch.tensor([0.1, 10.0])
    assert network(image, t).shape == (2, 2, 16, 16)
    assert (network(10 * image, t) / network(image, t)).median() < 3


def test_residual_layers_add_their_input_where_shapes_agree() -> None:
    torch.manual_seed(0)
    plain = UNet(1, LogEmbedding(), width=4, scales=2, norm=PixelNorm)
    torch.manual_seed(0)
    residual = UNet(1, LogEmbedding(), width=4, scales=2, norm=PixelNorm, residual=True)
    kinds = [[layer.residual for layer in block.children()] for block in (*residual.encoder, residual.middle)]
    assert kinds == [[False, True, True], [False, True, True], [False, True, False]]
    x, embedding = torch.randn(2, 4, 8, 8), torch.randn(2, 256)
    layer, same = residual.encoder[0][1], plain.encoder[0][1]
    assert torch.allclose(layer(x, embedding), (x + same(x, embedding)) / 2**0.5)


def test_images_that_do_not_fit_are_refused() -> None:
    network = UNet(1, LinearEmbedding(), width=4, scales=2)
    for shape in [(1, 3, 8, 8), (1, 1, 8, 10)]:
        with pytest.raises(ValueError, match="1-channel images with sides divisible by 4"):
            network(torch.zeros(shape), torch.zeros(1))


def test_impossible_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 layers in the middle"):
        UNet(1, LinearEmbedding(), layers=(1, 1, 1))
    with pytest.raises(ValueError, match="width"):
        UNet(1, LinearEmbedding(), width=0)


def test_the_log_embedding_tells_all_noise_levels_apart_and_the_papers_does_not() -> None:
    t = torch.logspace(-9, 3, 61, dtype=torch.float64)
    log_angles, paper_angles = LogEmbedding().double().angles(t), LinearEmbedding().angles(t)
    low = t < 1e-2
    assert float((paper_angles[low].max(0).values - paper_angles[low].min(0).values).max()) < 0.011
    features = torch.cat([log_angles.cos(), log_angles.sin()], dim=1)
    distances = torch.cdist(features, features) + 10 * torch.eye(len(t), dtype=torch.float64)
    assert float(distances[t > 1e-6][:, t > 1e-6].min()) > 0.5
    assert LogEmbedding()(torch.zeros(1), torch.zeros(1, 1, 2, 2)).isfinite().all()

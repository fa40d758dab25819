"""Anybody's denoiser: the same figures by every convention, the truth where it is known, wrong ones found."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dualscore
from dualscore.data.known import draw_images
from dualscore.denoisers import GivenDenoiser, of_edm, of_flow, of_pixels, of_steps
from dualscore.densities import GaussianMixture, gaussian_textures, texture_mixture
from dualscore.errors import ModelError
from dualscore.gaussian import QUANTIZATION_VARIANCE, StationaryGaussian
from dualscore.likelihood import bits, mean
from dualscore.measuring.any_denoiser import DenoiserReport

Denoise = Callable[[Tensor, Tensor], Tensor]
T_RANGE = (1e-6, 1e3)
DENSITY, EXACT = gaussian_textures((1, 8, 8)), gaussian_textures((1, 8, 8)).double()
IMAGES = draw_images(DENSITY, 200, True, torch.Generator().manual_seed(0))
STEPS = torch.cumprod(1.0 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)


def best(noisy: Tensor, t: Tensor) -> Tensor:
    """The posterior mean of the textures on grey levels."""
    density = EXACT if noisy.dtype == torch.float64 else DENSITY
    gradient = density.gradients(noisy, t + QUANTIZATION_VARIANCE, time=False).image
    return noisy - t[:, None, None, None] * gradient


def column(t: Tensor) -> Tensor:
    return t[:, None, None, None]


def centred(x: Tensor, deviation: Tensor) -> Tensor:
    """The best denoiser of x′ = 2x − 1 with noise of that standard deviation."""
    return 2.0 * best(0.5 * (x + 1.0), 0.25 * deviation.square()) - 1.0


def network(prediction: str) -> Denoise:
    """What a perfect network of a noise schedule predicts, at steps that need not be integers."""
    logs = 0.5 * torch.log((1.0 - STEPS) / STEPS)

    def predict(x: Tensor, step: Tensor) -> Tensor:
        step = step.double()
        low = step.floor().clamp(max=998).long()
        deviation = torch.lerp(logs[low], logs[low + 1], step - low).exp().to(x)
        root = column((1.0 + deviation.square()).rsqrt())
        denoised = centred(x / root, deviation)
        noise = (x / root - denoised) / column(deviation)
        if prediction == "sample":
            return denoised
        return noise if prediction == "epsilon" else root * noise - column(deviation) * root * denoised

    return predict


def velocity(x: Tensor, s: Tensor) -> Tensor:
    share = column(s)
    denoised = centred(x / (1.0 - share), s / (1.0 - s))
    return (x - (1.0 - share) * denoised) / share - denoised


CONVENTIONS: dict[str, GivenDenoiser] = {
    "pixels, variance": of_pixels(best, t_range=T_RANGE),
    "pixels, deviation": of_pixels(lambda y, s: best(y, s.square()), t_range=T_RANGE, level="deviation"),
    "[0, 255]": of_pixels(
        lambda y, t: 255.0 * best(y / 255.0, t / 255.0**2), t_range=T_RANGE, pixels=(0.0, 255.0)
    ),
    "EDM": of_edm(centred, deviations=(2e-3, 2.0 * math.sqrt(1e3))),
    "flow": of_flow(velocity, times=(2e-3 / (1 + 2e-3), 1.0 - 1.0 / (1.0 + 2.0 * math.sqrt(1e3)))),
    **{
        kind: of_steps(network(kind), STEPS, prediction=kind, between=True)  # type: ignore[arg-type]
        for kind in ("epsilon", "v_prediction", "sample")
    },
}


def measured(denoiser: GivenDenoiser, **settings: object) -> DenoiserReport:
    return dualscore.measure(denoiser, IMAGES, strata=16, seed=0, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
def test_the_same_denoiser_by_every_convention_has_the_same_bound(dtype: torch.dtype, gap: float) -> None:
    """With the same noise, in the range of the one that knows least; apart by what its precision rounds."""
    t_range, images = CONVENTIONS["epsilon"].t_range, IMAGES[:100].to(dtype) / 255.0
    found = {
        name: dualscore.measure(denoiser, images, strata=8, t_range=t_range, checked=2).bound.value
        for name, denoiser in CONVENTIONS.items()
    }
    plain = found["pixels, variance"]
    assert all(value == pytest.approx(plain, abs=gap) for value in found.values()), found


def test_the_bound_of_the_best_denoiser_is_near_the_truth_and_not_below() -> None:
    report = measured(CONVENTIONS["pixels, variance"], ode_images=16)
    t = torch.full((200,), QUANTIZATION_VARIANCE)
    truth = bits(DENSITY(IMAGES.float() / 255.0, t).double(), 64).mean() + math.log2(255.0)
    assert report.bits_per_dim["bound"]["certificate"]["value"] > float(truth)
    assert report.bits_per_dim["ode"]["value"] == pytest.approx(float(truth), abs=0.1)
    assert not report.verdict.startswith("INCONSISTENT")
    assert "bits/dim, 200 images" in str(report)
    assert len(report.images["bits_per_dim"]) == 200
    assert [round(level["psnr_in"]) for level in report.noise_levels] == [60, 50, 40, 30, 20, 10, 0, -10]


@pytest.mark.parametrize("density", [gaussian_textures, texture_mixture])
def test_the_bound_is_the_truth_image_by_image(density: Callable[..., GaussianMixture]) -> None:
    """Less the truth of the same image it has a hundredth of the error, so that 0.05 can be seen."""
    known, count = density((1, 8, 8)), 600
    images = draw_images(known, count, True, torch.Generator().manual_seed(0))

    def posterior(noisy: Tensor, t: Tensor) -> Tensor:
        return noisy - column(t) * known.gradients(noisy, t + QUANTIZATION_VARIANCE, time=False).image

    report = dualscore.measure(of_pixels(posterior, t_range=T_RANGE), images, strata=64)
    t = torch.full((count,), QUANTIZATION_VARIANCE)
    truth = bits(known(images.float() / 255.0, t).double(), 64) + math.log2(255.0)
    gap = mean(report.images["bits_per_dim"] - truth)
    assert gap.stderr < 0.015
    assert -3.0 * gap.stderr < gap.value < 0.05


SPOILT: dict[str, tuple[Callable[[], GivenDenoiser], str]] = {
    "range": (
        lambda: of_pixels(best, t_range=T_RANGE, pixels=(-1.0, 1.0)),
        r"in \[0, 1\], not in \[−1, 1\]",
    ),
    "the other range": (
        lambda: of_pixels(lambda y, t: centred(y, t.sqrt()), t_range=T_RANGE),
        r"in \[−1, 1\], not in \[0, 1\]",
    ),
    "bytes": (
        lambda: of_pixels(lambda y, t: 255.0 * best(y / 255.0, t / 255.0**2), t_range=T_RANGE),
        r"in \[0, 255\]",
    ),
    "level": (
        lambda: of_pixels(lambda y, s: best(y, s.square()), t_range=T_RANGE),
        "needs a standard deviation",
    ),
    "scale": (lambda: of_pixels(lambda y, t: 1.01 * best(y, t), t_range=T_RANGE), ""),
    "shift": (lambda: of_pixels(lambda y, t: best(y, t) + 0.01, t_range=T_RANGE), ""),
    "noise level": (
        lambda: of_pixels(lambda y, t: best(y, 2.0 * t), t_range=T_RANGE),
        "as much noise is removed",
    ),
    "the noise itself": (
        lambda: of_pixels(lambda y, t: (y - best(y, t)) / column(t.sqrt()), t_range=T_RANGE),
        "gives the noise",
    ),
    "float16": (
        lambda: of_pixels(lambda y, t: best(y.half().float(), t).half().float(), t_range=T_RANGE),
        "half precision",
    ),
    "bfloat16 in its network": (
        lambda: of_steps(
            lambda x, s: network("sample")(x.bfloat16().float(), s).bfloat16(),
            STEPS,
            prediction="sample",
            between=True,
        ),
        "half precision",
    ),
    "mirrored": (lambda: of_pixels(lambda y, t: best(y, t).flip(-1), t_range=T_RANGE), ""),
}


@pytest.mark.parametrize("how", SPOILT)
def test_spoilt_denoisers_are_refused_or_named(how: str) -> None:
    """Where another reading of the function would fit, the line says which."""
    make, named = SPOILT[how]
    try:
        said = measured(make()).verdict
        assert said.startswith("INCONSISTENT")
    except ModelError as error:
        said = str(error)
    assert re.search(named, said), said


def test_half_precision_of_predicted_noise_costs_little() -> None:
    """It multiplies by the noise's deviation, so that nothing is refused; what it costs is in the bound."""
    half = of_steps(lambda x, s: network("epsilon")(x.bfloat16().float(), s).bfloat16(), STEPS, between=True)
    full, rounded = (measured(d).bound.value for d in (CONVENTIONS["epsilon"], half))
    assert full < rounded < full + 0.02


def test_a_schedule_that_is_off_by_one_step_is_named() -> None:
    """It costs 0.004 bits/dim of these images, and shows where there is little noise: too much is removed."""
    images = draw_images(DENSITY, 1000, True, torch.Generator().manual_seed(0))
    late = of_steps(lambda x, s: network("epsilon")(x, (s + 1).clamp(max=999)), STEPS, between=True)
    words = {}
    for name, denoiser in (("right", CONVENTIONS["epsilon"]), ("late", late)):
        report = dualscore.measure(denoiser, images, strata=2, checked=1000, psnr=(43, 40, 38))
        words[name] = report.verdict
    assert not words["right"].startswith("INCONSISTENT")
    assert "as much noise is removed as there is" in words["late"]


def test_swapped_channels_are_named() -> None:
    """Of images whose channels differ in brightness and in what they hold."""
    spectrum = torch.diag(torch.tensor([0.03, 0.01, 0.003]))[:, :, None, None].expand(3, 3, 8, 8)
    colours = StationaryGaussian(torch.tensor([0.35, 0.5, 0.6]), spectrum)
    noise = torch.randn(100, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = colours.synthesize(noise * colours.eigenvalues.sqrt()) + colours.mean[:, None, None]
    images = (255.0 * drawn.clamp(0, 1)).round().to(torch.uint8)

    def right(y: Tensor, t: Tensor) -> Tensor:
        return colours.denoise(y, t)

    swapped = of_pixels(lambda y, t: right(y.flip(1), t).flip(1), t_range=T_RANGE)
    assert "channels come in the other order" in dualscore.measure(swapped, images, strata=8).verdict
    good = dualscore.measure(of_pixels(right, t_range=T_RANGE), images, strata=8).verdict
    assert "channels" not in good


def test_a_function_that_cuts_its_derivative_has_no_ode() -> None:
    def cut(y: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            return best(y, t)

    with pytest.raises(ModelError, match="cuts"):
        measured(of_pixels(cut, t_range=T_RANGE), ode_images=4)


def test_a_jacobian_that_is_not_symmetric_is_told_and_nothing_more() -> None:
    def turned(y: Tensor, t: Tensor) -> Tensor:
        away = best(y, t) - y
        return y + away + 0.02 * away.mT

    report = measured(of_pixels(turned, t_range=T_RANGE))
    assert not report.verdict.startswith("INCONSISTENT")
    assert max(share for _, share in report.asymmetry) < 0.1
    crossed = of_pixels(lambda y, _: y + 1e-6 * (y - 0.5).cumsum(3), t_range=T_RANGE)
    assert "not symmetric" in str(measured(crossed))
    assert max(share for _, share in measured(CONVENTIONS["EDM"]).asymmetry) < 0.02


def test_an_ode_that_does_not_agree_with_the_bound_is_named() -> None:
    def turned(y: Tensor, t: Tensor) -> Tensor:
        away = best(y, t) - y
        return y + away + 0.3 * away.mT

    report = measured(of_pixels(turned, t_range=T_RANGE), ode_images=16)
    assert "the ODE agrees with the bound, 16 images" in report.verdict
    assert "as much noise is removed as there is, 20, 10, 0, -10 dB" in report.verdict


@pytest.mark.parametrize("count", [2, 4, 8])
def test_few_images_raise_no_false_alarm(count: int) -> None:
    wrong = 0
    for seed in range(12):
        images = draw_images(DENSITY, count, True, torch.Generator().manual_seed(seed))
        report = dualscore.measure(CONVENTIONS["pixels, variance"], images, strata=2, seed=seed)
        wrong += report.verdict.startswith("INCONSISTENT")
    assert wrong <= 1


def test_crops_of_few_photographs_are_no_proof_against_a_right_denoiser() -> None:
    """Images that share their photograph's brightness: each a draw of the density, together far from it."""
    images = IMAGES[:8].repeat_interleave(25, dim=0)
    photographs = torch.arange(8).repeat_interleave(25)
    report = dualscore.measure(CONVENTIONS["EDM"], images, photographs=photographs, strata=2, checked=200)
    assert not report.verdict.startswith("INCONSISTENT")
    assert report.bits_per_dim["bound"]["photographs"] == 8


def test_nothing_is_asked_beyond_what_a_denoiser_knows() -> None:
    low, high = 2e-3, 80.0

    def strict(x: Tensor, deviation: Tensor) -> Tensor:
        if not bool(((deviation > 0.999 * low) & (deviation < 1.001 * high)).all()):
            raise ValueError("outside its table")
        return centred(x, deviation)

    report = dualscore.measure(of_edm(strict, deviations=(low, high)), IMAGES[:20], strata=4)
    assert "bits/dim, 20 images" in str(report)


def test_a_function_may_write_into_what_it_is_given() -> None:
    def writes(y: Tensor, t: Tensor) -> Tensor:
        found = best(y, t)
        y.zero_()
        t.zero_()
        return found

    plain, other = (GivenDenoiser(f, T_RANGE) for f in (best, writes))
    assert measured(other).bound.value == measured(plain).bound.value


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"psnr": ()}, "none of psnr"), ({"psnr": (90,)}, "none of psnr"),
        ({"psnr": (math.nan, 30)}, "number"),
        ({"t_range": (1e3, 1e-6)}, "smallest < largest"), ({"t_range": (0.0, 1.0)}, "smallest < largest"),
        ({"strata": 0}, "strata must be 1"), ({"batch_size": 0}, "batch_size must be"),
        ({"checked": 1}, "checked"),
        ({"ode_images": 1}, "ode_images"), ({"photographs": torch.zeros(3)}, "200 numbers, one an image"),
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused_before_anything_is_measured(
    settings: dict[str, object], said: str
) -> None:
    def never(_: Tensor, __: Tensor) -> Tensor:
        raise AssertionError("asked")

    with pytest.raises(ValueError, match=said):
        dualscore.measure(of_pixels(never, t_range=T_RANGE), IMAGES, **settings)  # type: ignore[arg-type]


def test_wrappers_refuse_what_they_cannot_read() -> None:
    with pytest.raises(ModelError, match="at 1 there is no image left"):
        of_flow(velocity, times=(0.001, 1.0))
    with pytest.raises(ModelError, match="variance or deviation"):
        of_pixels(best, t_range=T_RANGE, level="Variance")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="rising"):
        of_pixels(best, t_range=T_RANGE, pixels=(1.0, 1.0))
    with pytest.raises(ModelError, match="is no denoiser yet"):
        dualscore.measure(best, IMAGES)  # type: ignore[arg-type]
    assert of_steps(network("epsilon"), STEPS.numpy()).t_range == CONVENTIONS["epsilon"].t_range  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda y, _: y[:, :, :4], r"gave \(8, 1, 4, 8\) for images \(8, 1, 8, 8\)"),
        (lambda y, t: (y, t), "gave a tuple, not a tensor"),
        (lambda y, _: y * math.nan, "not finite"),
    ],
)
def test_what_is_no_denoiser_is_refused_in_a_line(function: Denoise, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        measured(of_pixels(function, t_range=T_RANGE))


def test_images_off_their_grey_levels_are_refused() -> None:
    denoiser = CONVENTIONS["pixels, variance"]
    for images, said in (
        (IMAGES.float() / 255.0 + 1e-3, "grey levels"), (IMAGES.float(), r"in \[0, 1\]"),
        (IMAGES[0], "shape"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            dualscore.measure(denoiser, images)
    with pytest.raises(ModelError, match="alphas_cumprod"):
        of_steps(network("epsilon"), torch.linspace(0.1, 0.9, 10))
    with pytest.raises(ModelError, match="prediction must be"):
        of_steps(network("epsilon"), STEPS, prediction="score")  # type: ignore[arg-type]


def test_integer_steps_cost_little_where_there_are_many() -> None:
    """Asked at the nearest step, rescaled."""
    t_range = CONVENTIONS["epsilon"].t_range
    nearest = of_steps(network("epsilon"), STEPS)
    exact, rounded = (measured(d, t_range=t_range).bound.value for d in (CONVENTIONS["epsilon"], nearest))
    assert exact - 1e-3 < rounded < exact + 0.05


def test_the_figures_do_not_depend_on_the_batches() -> None:
    one, other = (measured(CONVENTIONS["EDM"], batch_size=size).bound.value for size in (200, 7))
    assert one == pytest.approx(other, abs=1e-6)


def test_rows_are_kept_for_the_same_measurement_alone(tmp_path: Path) -> None:
    """Whatever differs a little: two of the images, the prior, labels, one noise level of the denoiser."""
    images = IMAGES[:40].clone()
    other = images.clone()
    other[1:3] = IMAGES[100:102]
    zero, one = torch.zeros(40, dtype=torch.long), torch.zeros(40, dtype=torch.long)
    one[1:3] = 1

    def at_one_level(noisy: Tensor, t: Tensor) -> Tensor:
        return torch.where(column((t > 2e-5) & (t < 9e-4)), noisy, best(noisy, t))

    def of_labels(labels: Tensor) -> GivenDenoiser:
        return of_pixels(lambda y, t: best(y, t) + column(1e-3 * labels * t.sqrt()), t_range=T_RANGE)

    prior = StationaryGaussian(torch.tensor([0.2]), torch.full((1, 1, 8, 8), 0.1))
    plain = of_pixels(best, t_range=T_RANGE)
    ways: list[tuple[Any, Tensor, dict[str, Any]]] = [
        (plain, images, {}), (plain, other, {}), (plain, images, {"prior": prior, "t_range": (1e-6, 1.0)}),
        (of_pixels(at_one_level, t_range=T_RANGE), images, {}), (of_labels, images, {"labels": zero}),
        (of_labels, images, {"labels": one}), (plain, images, {"seed": 1}), (plain, images, {"strata": 5}),
    ]  # fmt: skip
    for denoiser, given, more in ways:
        settings = {"strata": 4, "checked": 4} | more
        fresh = dualscore.measure(denoiser, given, **settings)
        kept = dualscore.measure(denoiser, given, kept=dualscore.kept_rows(tmp_path), **settings)
        assert torch.equal(kept.images["bits_per_dim"], fresh.images["bits_per_dim"])
    asked = 0

    def counted(noisy: Tensor, t: Tensor) -> Tensor:
        nonlocal asked
        asked += len(noisy)
        return best(noisy, t)

    for most in (10**9, 60):  # the second time for the digest of its answers alone
        asked = 0
        denoiser = of_pixels(counted, t_range=T_RANGE)
        dualscore.measure(denoiser, images, strata=4, checked=4, kept=dualscore.kept_rows(tmp_path))
        assert asked <= most


def test_each_image_must_be_answered_on_its_own() -> None:
    def of_the_first_level(noisy: Tensor, t: Tensor) -> Tensor:
        return best(noisy, t[:1].expand(len(t)))

    def of_the_batch(noisy: Tensor, t: Tensor) -> Tensor:
        return best(noisy, t) + noisy.mean(dim=0, keepdim=True) * column(t / (1.0 + t))

    generator = torch.Generator().manual_seed(0)

    def at_random(noisy: Tensor, t: Tensor) -> Tensor:
        return best(noisy, t) + 0.3 * column(t.sqrt()) * torch.randn(noisy.shape, generator=generator)

    for wrong in (of_the_first_level, of_the_batch, at_random):
        with pytest.raises(ModelError, match="a noise level for each image"):
            measured(of_pixels(wrong, t_range=T_RANGE))

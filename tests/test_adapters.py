"""Models of other libraries: against what those libraries make of a prediction, and from folders."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dualscore
from dualscore.adapters import of_azula, of_deepinv, of_diffusers, read_diffusers
from dualscore.data.known import draw_images
from dualscore.denoisers import GivenDenoiser
from dualscore.densities import gaussian_textures
from dualscore.errors import ModelError
from dualscore.gaussian import QUANTIZATION_VARIANCE
from dualscore.likelihood import dequantized_bits_per_dim
from workspace import ROOT

DENSITY = gaussian_textures((1, 8, 8))
SMALL: dict[str, Any] = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1, "attention_head_dim": 4,
}  # fmt: skip


def unet(seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(**SMALL | more).eval().requires_grad_(False)


def noisy_images(count: int = 4, channels: int = 1) -> Tensor:
    """Noisy centred images, x′ + σ′ z with σ′ of its own."""
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(0))


def denoised(denoiser: GivenDenoiser, centred: Tensor, deviation: float) -> Tensor:
    """x̂′ that a denoiser of pixels in [0, 1] gives for y′."""
    t = torch.full((len(centred),), 0.25 * deviation**2)
    return 2.0 * denoiser.denoise((centred + 1.0) / 2.0, t) - 1.0


STEPPED = ["DDPM", "DDIM", "DDPMParallel", "DDIMParallel"]


@pytest.mark.parametrize("step", [3, 500, 998])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", STEPPED)
def test_denoised_images_are_those_of_the_scheduler_itself(name: str, prediction: str, step: int) -> None:
    """Its step's `pred_original_sample`, of √ᾱ y′ at that step."""
    scheduler = getattr(diffusers, f"{name}Scheduler")(
        prediction_type=prediction, clip_sample=False, beta_schedule="squaredcos_cap_v2"
    )
    network, centred = unet(), noisy_images()
    root = scheduler.alphas_cumprod[step].double().sqrt()
    deviation = float((1.0 / root**2 - 1.0).sqrt())
    shown = root.float() * centred
    if hasattr(scheduler, "set_timesteps"):
        scheduler.set_timesteps(1000)
    wanted = scheduler.step(network(shown, step).sample, step, shown).pred_original_sample
    found = denoised(of_diffusers(network, scheduler), centred, deviation)
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-4 * float(wanted.abs().max()))


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["EulerDiscrete", "HeunDiscrete", "KDPM2Discrete"])
def test_schedulers_that_see_scaled_noise_give_the_same(name: str, prediction: str) -> None:
    """They scale y′ by 1/√(1 + σ′²), which is √ᾱ; the denoised image does not depend on which one steps."""
    network, centred = unet(), noisy_images()
    makes, betas = getattr(diffusers, f"{name}Scheduler"), {"beta_start": 1e-4, "beta_end": 0.02}
    by_ddpm = of_diffusers(network, diffusers.DDPMScheduler(prediction_type=prediction, **betas))
    found = of_diffusers(network, makes(prediction_type=prediction, **betas))
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type=prediction, **betas)
    scheduler.set_timesteps(1000)
    time = scheduler.timesteps[300]
    shown, sigma = scheduler.scale_model_input(centred, time), float(scheduler.sigmas[300])
    step = scheduler.step(network(shown, time).sample, time, centred)
    torch.testing.assert_close(denoised(found, centred, sigma), denoised(by_ddpm, centred, sigma))
    if prediction != "sample":  # which Euler's own step does not know
        torch.testing.assert_close(
            denoised(found, centred, sigma), step.pred_original_sample, rtol=2e-4, atol=2e-4
        )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_is_preconditioned_as_diffusers_does(prediction: str) -> None:
    scheduler = diffusers.EDMEulerScheduler(prediction_type=prediction, sigma_data=0.5)
    network, centred = unet(), noisy_images()
    scheduler.set_timesteps(20)
    time, sigma = scheduler.timesteps[7], float(scheduler.sigmas[7])
    shown = scheduler.scale_model_input(centred, time)
    step = scheduler.step(network(shown, time).sample, time, centred)
    found = denoised(of_diffusers(network, scheduler), centred, sigma)
    torch.testing.assert_close(found, step.pred_original_sample, rtol=1e-4, atol=1e-4)


def test_a_flow_ends_where_its_own_steps_lead() -> None:
    """One step of the scheduler from time s to 0 is x_s − s û."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    network, s = unet(), 0.3
    mixed = noisy_images()
    scheduler.set_timesteps(sigmas=[s])
    wanted = scheduler.step(network(mixed, scheduler.timesteps[0]).sample, scheduler.timesteps[0], mixed)
    found = denoised(of_diffusers(network, scheduler), mixed / (1.0 - s), s / (1.0 - s))
    torch.testing.assert_close(found, wanted.prev_sample, rtol=1e-4, atol=1e-4)
    first, last = 1e-3 / (1.0 - 1e-3), (1.0 - 1e-3) / 1e-3  # σ′ at its first step and before its last
    assert of_diffusers(network, scheduler).t_range == pytest.approx((0.25 * first**2, 0.25 * last**2))


def test_a_score_of_ncsn_is_of_pixels_that_it_centres_itself() -> None:
    """Tweedie: x̂ = y + σ² s(y, σ)."""
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0)
    for centres in (True, False):
        network = unet(center_input_sample=centres, time_embedding_type="fourier")
        noisy, sigma = noisy_images(), torch.full((4,), 0.7)
        wanted = noisy + 0.49 * network(noisy, sigma).sample
        denoiser = of_diffusers(network, scheduler)
        assert denoiser.t_range == pytest.approx((1e-4, 2500.0))
        torch.testing.assert_close(denoiser.denoise(noisy, sigma.square()), wanted, rtol=1e-4, atol=1e-4)


def test_learned_variances_are_dropped_and_classes_told() -> None:
    scheduler = diffusers.DDPMScheduler()
    network = unet(out_channels=2, num_class_embeds=5)
    labels = torch.tensor([0, 4, 2, 2])
    found = denoised(of_diffusers(network, scheduler, labels=labels), noisy_images(), 1.0)
    one = denoised(of_diffusers(network, scheduler, labels=2), noisy_images(), 1.0)
    torch.testing.assert_close(found[2:], one[2:])
    assert not torch.allclose(found[:2], one[:2])
    for wrong in (None, 5, -1, torch.tensor([0, 7])):
        with pytest.raises(ModelError, match=r"one of 5|there are 5 classes"):
            of_diffusers(network, scheduler, labels=wrong)
    with pytest.raises(ModelError, match="takes no class"):
        of_diffusers(unet(), scheduler, labels=1)


def test_a_class_of_each_image_reaches_its_batch() -> None:
    network, scheduler = unet(num_class_embeds=3), diffusers.DDPMScheduler(prediction_type="sample")
    images = draw_images(DENSITY, 12, True, torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 3

    def bits(order: Tensor) -> Tensor:
        report = dualscore.measure(
            lambda chosen: of_diffusers(network, scheduler, labels=chosen), images, labels=order,
            strata=2, checked=2, batch_size=5, psnr=(0, -10),
        )  # fmt: skip
        return report.images["bits_per_dim"]

    same, other = bits(labels), bits((labels + 1) % 3)
    assert bool((same != other).all())
    mixed = torch.where(torch.arange(12) < 6, labels, (labels + 1) % 3)
    assert torch.allclose(bits(mixed)[:6], same[:6])
    with pytest.raises(ValueError, match="a function of them"):
        dualscore.measure(of_diffusers(network, scheduler, labels=0), images, labels=labels)


def test_a_transformer_of_pixels_is_told_a_class() -> None:
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=3, out_channels=6, num_layers=1,
        sample_size=8, patch_size=2, num_embeds_ada_norm=4, norm_num_groups=4,
    ).eval()  # fmt: skip
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(1000)
    centred, step = noisy_images(channels=3), 400
    root = scheduler.alphas_cumprod[step].double().sqrt()
    shown, labels = root.float() * centred, torch.full((4,), 4)  # 4 stands for no class
    given = network(shown, torch.full((4,), step), class_labels=labels).sample[:, :3]
    wanted = scheduler.step(given, step, shown).pred_original_sample
    found = denoised(of_diffusers(network, scheduler, labels=4), centred, float((1.0 / root**2 - 1.0).sqrt()))
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small pipeline that learned the textures for some seconds."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    network = diffusers.UNet2DModel(**SMALL | {"block_out_channels": (16, 32)})
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(300):
        clean = draw_images(DENSITY, 64, True, generator).float() / 127.5 - 1.0
        step = torch.randint(0, 1000, (64,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = scheduler.add_noise(clean, noise, step)
        loss = (network(noisy, step).sample - scheduler.get_velocity(clean, noise, step)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("diffusers") / "textures"
    diffusers.DDPMPipeline(network.eval(), scheduler).save_pretrained(folder)
    return folder


def test_a_trained_model_from_its_folder_has_a_bound_above_the_truth_and_near_it(trained: Path) -> None:
    read = read_diffusers(trained)
    assert (read.channels, read.size) == (1, (8, 8))
    images = draw_images(DENSITY, 200, True, torch.Generator().manual_seed(1))
    report = dualscore.measure(of_diffusers(read), images, strata=16)
    t = torch.full((200,), QUANTIZATION_VARIANCE)
    nats = DENSITY(images.float() / 255.0, t).double()
    truth = float(dequantized_bits_per_dim(nats, 64).mean())
    assert truth - 3 * report.bound.stderr < report.bound.value < truth + 1.0
    pipeline = diffusers.DDPMPipeline.from_pretrained(trained, local_files_only=True)
    again = dualscore.measure(of_diffusers(pipeline), images, strata=16)
    assert again.bound.value == report.bound.value


def test_a_flat_folder_is_read_as_the_hub_has_them(trained: Path, tmp_path: Path) -> None:
    for part in ("unet", "scheduler"):
        for file in (trained / part).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert read_diffusers(tmp_path).size == (8, 8)  # without model_index.json
    (tmp_path / "model_index.json").write_bytes((trained / "model_index.json").read_bytes())
    assert read_diffusers(tmp_path).size == (8, 8)


def changed(folder: Path, place: str, **entries: Any) -> None:
    path = folder / place
    content = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "REMOVE"}))


def without(folder: Path, name: str) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if key != name}, path)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "latent": (lambda f: changed(f, "model_index.json", vae=["diffusers", "AutoencoderKL"]), "latent model"),
    "text": (
        lambda f: changed(f, "model_index.json", text_encoder=["transformers", "CLIPTextModel"]),
        "told a text",
    ),
    "own code": (
        lambda f: changed(f, "model_index.json", unet=["my_module", "Net"]),
        "whose code is not run",
    ),
    "another part": (
        lambda f: changed(f, "model_index.json", prior=["diffusers", "PriorTransformer"]),
        "'prior'",
    ),
    "another network": (lambda f: changed(f, "unet/config.json", _class_name="UNet1DModel"), "a UNet1DModel"),
    "consistency": (
        lambda f: changed(f, "scheduler/scheduler_config.json", _class_name="LCMScheduler"),
        "LCMScheduler is not known here.*no posterior mean",
    ),
    "prediction": (
        lambda f: changed(f, "scheduler/scheduler_config.json", prediction_type="score"),
        "prediction_type='score' is not known",
    ),
    "no weights": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(),
        "holds no weights",
    ),
    "pickle": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors").rename(
            f / "unet/diffusion_pytorch_model.bin"
        ),
        "safe_serialization=True",
    ),
    "damaged": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"no weights"),
        "diffusers cannot read it",
    ),
    "other sizes": (lambda f: changed(f, "unet/config.json", block_out_channels=[8, 16]), "cannot read it"),
    "no configuration": (lambda f: (f / "unet/config.json").unlink(), "holds no config.json"),
    "a weight is missing": (
        lambda f: without(f, "conv_in.bias"),
        "weights do not fit the network: missing_keys",
    ),
    "pickled parts": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(
            '{"weight_map": {"conv_in.bias": "x.bin"}}'
        ),
        "no safetensors files beside it",
    ),
    "half a name": (
        lambda f: changed(f, "scheduler/scheduler_config.json", _class_name="DDPM"),
        "DDPM is not known here",
    ),
    "size of another kind": (lambda f: changed(f, "unet/config.json", sample_size="8"), "sample_size='8'"),
    "three sizes": (lambda f: changed(f, "unet/config.json", sample_size=[8, 8, 8]), "sample_size="),
    "torchsde": (
        lambda f: changed(f, "scheduler/scheduler_config.json", _class_name="DPMSolverSDEScheduler"),
        "torchsde",
    ),
}


@pytest.mark.parametrize("how", REFUSED)
def test_folders_that_are_no_pixel_models_are_refused_in_a_line(
    trained: Path, tmp_path: Path, how: str
) -> None:
    spoil, said = REFUSED[how]
    for file in trained.rglob("*.*"):
        copy = tmp_path / file.relative_to(trained)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    assert read_diffusers(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=said) as caught:
        read_diffusers(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_variant_and_parts_are_read(trained: Path, tmp_path: Path) -> None:
    pipeline = diffusers.DDPMPipeline.from_pretrained(trained, local_files_only=True)
    centred = noisy_images()
    wanted = denoised(of_diffusers(pipeline), centred, 1.0)
    pipeline.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len([*tmp_path.glob("parts/unet/*.safetensors")]) > 1
    pipeline.save_pretrained(tmp_path / "named", variant="ema")
    for folder in ("parts", "named"):
        found = denoised(of_diffusers(read_diffusers(tmp_path / folder)), centred, 1.0)
        torch.testing.assert_close(found, wanted)


def test_nothing_of_a_network_is_changed_and_its_precision_is_kept() -> None:
    scheduler, centred = diffusers.DDPMScheduler(), noisy_images()
    network = unet(dropout=0.5).requires_grad_(True).train()
    found = of_diffusers(network, scheduler)
    first = denoised(found, centred, 1.0)
    torch.testing.assert_close(denoised(found, centred, 1.0), first)  # without dropout
    assert network.training
    assert all(weight.requires_grad for weight in network.parameters())
    half = denoised(of_diffusers(network.to(torch.bfloat16), scheduler), centred, 1.0)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, first, atol=0.1, rtol=0.1)


def test_labels_of_another_batch_are_refused() -> None:
    network, scheduler = unet(num_class_embeds=3), diffusers.DDPMScheduler()
    with pytest.raises(ModelError, match="2 labels for 4 images"):
        denoised(of_diffusers(network, scheduler, labels=torch.tensor([0, 1])), noisy_images(), 1.0)
    with pytest.raises(ModelError, match="whole numbers"):
        of_diffusers(network, scheduler, labels=torch.zeros(4))


def test_networks_of_no_pixels_are_refused() -> None:
    scheduler = diffusers.DDPMScheduler()
    for network, with_scheduler, said in (
        (unet(in_channels=4, out_channels=4), scheduler, "4 channels, no pixels"),
        (unet(out_channels=3), scheduler, "gives 3 channels for 1"),
        (unet(center_input_sample=True), scheduler, "center_input_sample"),
        (unet(class_embed_type="timestep"), scheduler, "more than a class"),
        (unet(), None, "give the scheduler of its training"),
        (unet(), diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
         "only discrete steps"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=said):
            of_diffusers(network, with_scheduler)


def best(noisy: Tensor, t: Tensor) -> Tensor:
    gradient = DENSITY.gradients(noisy, t + QUANTIZATION_VARIANCE, time=False).image
    return noisy - t[:, None, None, None] * gradient


class Posterior:
    def __init__(self, mean: Tensor) -> None:
        self.mean = mean


class LikeAzula(nn.Module):
    """What azula's documentation says of its denoisers: a schedule, and a distribution of x given x_t."""

    def schedule(self, time: Tensor) -> tuple[Tensor, Tensor]:
        alpha = torch.exp(time.square() * torch.tensor(1e-3).log())
        return alpha, (1.0 - alpha.square() + 1e-6).sqrt()

    def forward(self, x_t: Tensor, time: Tensor) -> Posterior:
        alpha, sigma = self.schedule(time.double())
        y = (x_t / alpha[:, None, None, None].to(x_t) + 1.0) / 2.0
        return Posterior(2.0 * best(y, (0.25 * (sigma / alpha).square()).to(x_t)) - 1.0)


def test_denoisers_of_azula_and_deepinv_have_the_same_bound_as_the_plain_one() -> None:
    images = draw_images(DENSITY, 40, True, torch.Generator().manual_seed(0))
    azula = of_azula(LikeAzula().double())
    deepinv = of_deepinv(lambda x, sigma: best(x, sigma.square()), deviations=(1e-3, 300.0))
    plain = GivenDenoiser(best, azula.t_range)
    assert azula.t_range == pytest.approx((0.25e-6, 0.25e6), rel=1e-2)
    found = {
        name: dualscore.measure(d, images, t_range=azula.t_range, strata=4, checked=2).bound.value
        for name, d in (("azula", azula), ("deepinv", deepinv), ("plain", plain))
    }
    assert all(value == pytest.approx(found["plain"], abs=1e-4) for value in found.values()), found
    with pytest.raises(ModelError, match="no schedule"):
        of_azula(nn.Identity())


def test_no_adapter_is_imported_before_it_is_used() -> None:
    code = "import sys, dualscore, dualscore.cli, dualscore.adapters; dualscore.measure; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT / "src").split())
    assert not loaded & {"diffusers", "azula", "deepinv", "huggingface_hub"}
    code = "import sys, dualscore; dualscore.measure; print('dualscore.adapters' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"

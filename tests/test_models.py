"""Model files: the same figures as the checkpoint, without the run, its data or a pickle."""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open

import dualscore
from dualscore.assemble import build
from dualscore.energy import Denoiser
from dualscore.errors import CheckpointError, DualscoreError, NormalizationError, ScoreError
from dualscore.likelihood import noise_entropy
from dualscore.model import ImageModel
from dualscore.publishing import convert
from dualscore.settings.experiment import load_experiment
from test_photographs import several
from test_released import DATA, _reference, _relative_error
from test_scoring import fill, of_any_size, picture, rows, unet
from workspace import ROOT, TINY, Workspace

QUIET = Console(quiet=True)


def checkpoint(path: Path, experiment: str, *settings: str, log_z: float = math.nan, steps: int = 3) -> Path:
    """A checkpoint as training writes it; its weights were moved at random, those averaged in another way."""
    config = load_experiment(experiment, [*TINY, *settings], ROOT / "experiments")
    module, _ = build(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    module.log_normalizer.fill_(log_z)
    content = {"state_dict": module.state_dict(), "global_step": steps, "dualscore": module.description}
    torch.save(content, path)
    return path


def energies(model: ImageModel, images: torch.Tensor) -> list[torch.Tensor]:
    """All that a model says of images."""
    t = torch.logspace(-6, 1, len(images))
    if isinstance(model.score_model, Denoiser):
        return [model.denoise(images, t)]
    return [model.energy(images), model.energy(images, t), model.denoise(images, t)]


PLAIN = [f"energy.{part}=false" for part in ("fading", "offset", "potential", "sizes", "phase")]
KINDS = {
    "anchored, averaged": ("patches_dual", ["log_z"]),
    "local sizes, levels told apart": (
        "patches_dual",
        ["energy.sizes=true", "objective.level_weight=0.002", "log_z"],
    ),
    "not averaged": ("patches_dual", ["optim.ema_steps=0"]),
    "double": ("patches_dual", ["trainer.precision=64-true", "log_z"]),
    "colour": ("gaussian_textures", ["log_z"]),
    "the paper's": ("gaussian_textures_plain", ["network.layers=2"]),
    "another fading": ("texture_mixture", ["trainer.precision=64-true", "optim.ema_steps=5"]),
    "denoiser": (
        "gaussian_textures_plain",
        ["model=denoiser", "energy.anchor=none", "energy.residual_input=raw", *PLAIN],
    ),
    "causal": (
        "gaussian_textures_plain",
        [
            "network.kind=causal",
            "network.orders=4",
            "energy.anchor=none",
            "energy.residual_input=raw",
            *PLAIN,
        ],
    ),
    "radial": ("scale_mixture_dual", ["log_z"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_file_gives_the_checkpoints_figures_to_the_bit(
    tmp_path: Path, demo_shards: Path, kind: str
) -> None:
    experiment, settings = KINDS[kind]
    log_z = 12.75 if "log_z" in settings else math.nan
    settings = [s for s in settings if s != "log_z"]
    if experiment == "patches_dual":
        settings.append(f"data.path={demo_shards}")
    path = checkpoint(tmp_path / "x.ckpt", experiment, *settings, log_z=log_z)
    before = dualscore.load(path)
    written = dualscore.save(path, tmp_path / "model")
    path.unlink()
    after, alone = dualscore.load(tmp_path / "model"), dualscore.load(written)
    assert before.image_shape is not None
    dtype = torch.float64 if "trainer.precision=64-true" in settings else torch.float32
    images = torch.rand(8, *before.image_shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for one, other, third in zip(*(energies(m, images) for m in (before, after, alone)), strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, other)
        assert torch.equal(one, third)
    known = 0.0 if kind == "causal" else None if math.isnan(log_z) else log_z
    assert after.log_normalizer == before.log_normalizer == known
    if after.log_normalizer is not None:
        assert torch.equal(after.log_prob(images), before.log_prob(images))
    for name in ("image_shape", "t_max", "t_min", "noisy_entropy", "provenance", "normalized_on"):
        assert getattr(after, name) == getattr(before, name)
    assert before.prior is not None
    assert after.prior is not None
    kept = after.prior.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in before.prior.state_dict().items())
    assert not after.training
    # Written again it is the same file.
    again = dualscore.save(after, tmp_path / "again")
    assert again.read_bytes() == written.read_bytes()


def test_averaged_weights_are_taken(tmp_path: Path, demo_shards: Path) -> None:
    path = checkpoint(tmp_path / "x.ckpt", "patches_dual", f"data.path={demo_shards}")
    state = torch.load(path, weights_only=True)["state_dict"]
    with safe_open(dualscore.save(path, tmp_path / "model"), "pt") as file:
        name = "network.output.weight"
        found = file.get_tensor(f"model.{name}")
        assert torch.equal(found, state[f"average.module.{name}"])
        assert not torch.equal(found, state[f"model.{name}"])


def test_a_run_is_exported_with_all_that_its_evaluation_found(
    workspace: Workspace, demo_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = [*TINY, "trainer.max_steps=2", "trainer.validate_every=2", "optim.warmup_steps=0"]
    workspace.run("train", "patches_dual", *settings, f"data.path={demo_shards}", "data.workers=0")
    images = fill(workspace.folder / "images", 6, 16)
    workspace.run("score", "runs/patches_dual", str(images), "--out", "before")
    printed = workspace.run("export", "runs/patches_dual", "--licence", "CC0-1.0", "--out", "made")
    assert "written to made: model.safetensors" in printed
    assert "without" not in printed
    report = workspace.report("patches_dual")
    digest = _sha256(Path("runs/patches_dual/checkpoints/best.ckpt"))

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree("made", elsewhere / "renamed")
    shutil.rmtree("runs")
    workspace.run("score", str(elsewhere / "renamed"), str(images), "--out", "after")
    before, after = rows(Path("before")), rows(Path("after"))
    assert before == after
    assert all(0 <= float(row["percentile"]) <= 100 for row in after)
    summary = json.loads(Path("after/scores.json").read_text())
    assert summary["validation"]["images"] == 64

    model = dualscore.load(elsewhere / "renamed")
    assert model.origin is not None
    assert model.origin.evaluation is not None
    assert model.origin.evaluation["bits_per_dim"] == report["bits_per_dim"]
    assert model.log_normalizer_stderr == report["bits_per_dim"]["paper"]["log_normalizer"]["stderr"]
    held = (elsewhere / "renamed" / "model.safetensors").read_bytes() + (
        elsewhere / "renamed" / "README.md"
    ).read_bytes()
    assert str(demo_shards).encode() not in held  # no place of the maker's machine
    assert b"runs/patches_dual" not in held
    card = (elsewhere / "renamed" / "README.md").read_text()
    paper = report["bits_per_dim"]["paper"]
    for said in (
        f"| {paper['value']:.3f} ± {paper['stderr']:.3f} | 64 |",
        f"**Verdict** of the checks: {report['verdict']}",
        report["dataset"]["release"],
        digest,
        "step 2, averaged weights",
        "CC0-1.0",
        f"torch {torch.__version__}",
        'dualscore.load("made")',
    ):
        assert said in card


def test_what_is_not_known_is_said(workspace: Workspace, demo_shards: Path) -> None:
    checkpoint(Path("x.ckpt"), "patches_dual", f"data.path={demo_shards}")
    # Beside it lies what another checkpoint's evaluation found.
    Path("evaluation.json").write_text(json.dumps({"complete": True, "checkpoint_sha256": "0" * 64}))
    printed = workspace.run("export", "x.ckpt", "--out", "made")
    assert "without log Z, so no likelihoods; without images to rank others among" in printed
    assert "without an evaluation" in printed
    card = Path("made/README.md").read_text()
    assert "Not evaluated" in card
    assert "not known: `model.normalize(images)` estimates it" in card
    assert "It was not said under which terms" in card
    line = workspace.fail("score", "made", str(fill(Path("images"), 1, 16)), status=4)
    assert "normalization is not known" in line


def test_a_normalized_model_is_saved_as_it_is(tmp_path: Path, demo_shards: Path) -> None:
    model = dualscore.load(checkpoint(tmp_path / "x.ckpt", "patches_dual", f"data.path={demo_shards}"))
    images = torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    value = model.normalize(images)
    dualscore.save(model, tmp_path / "model", licence="none")
    found = dualscore.load(tmp_path / "model")
    assert (found.log_normalizer, found.log_normalizer_stderr) == (value, model.log_normalizer_stderr)
    assert found.normalized_on == "estimated by the paper's protocol on 20 images at t = 200"
    assert found.origin is not None
    assert found.origin.licence == "none"


def test_only_what_can_be_rebuilt_is_written_and_nothing_else_overwritten(
    tmp_path: Path, demo_shards: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"only models that dualscore\.load gave"):
        dualscore.save(of_any_size(), tmp_path / "model")
    path = checkpoint(tmp_path / "x.ckpt", "patches_dual", f"data.path={demo_shards}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    for taken in (tmp_path / "mine", path):
        with pytest.raises(CheckpointError, match=r"something else than a model|a file; name a folder"):
            dualscore.save(path, taken)
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"
    model = dualscore.load(path)
    next(model.parameters()).data[0] = math.nan
    with pytest.raises(CheckpointError, match="not finite"):
        dualscore.save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- released checkpoints


def test_a_converted_model_is_of_its_images_height_and_width(workspace: Workspace) -> None:
    Path("wide").mkdir()
    for k in range(3):
        picture(k, 16).crop((0, 0, 16, 8)).save(f"wide/{k}.png")
    released = str(DATA / "energy_small.pth.tar")
    workspace.run("convert", released, "--images", "wide", "--out", "made", "--workers", "0")
    assert dualscore.load("made").image_shape == (3, 8, 16)


def test_a_converted_checkpoint_gives_the_released_outputs(workspace: Workspace) -> None:
    released = DATA / "energy_small.pth.tar"
    images = fill(workspace.folder / "images", 12, 16)
    (images / "broken.png").write_bytes(b"no image")
    several(images / "moving.png")
    picture(0, 24).save(images / "other.png")
    printed = workspace.run("convert", str(released), "--images", "images", "--out", "made", "--workers", "0")
    for said in (
        "left out: images/broken.png cannot be decoded",
        "left out: 2 images; the first, images/moving.png is 8×8, but wanted are 16×16",
        "on 12 images of 3×16×16; 3 left out",
    ):
        assert said in printed
    model, reference = dualscore.load("made").double(), _reference("energy_small", torch.float64)
    assert model.log_normalizer is not None
    assert model.log_normalizer_stderr is not None
    assert model.image_shape == (3, 16, 16)
    model.image_shape = None  # the outputs are of another size
    energy = model.energy(reference["noisy"], reference["noise_variance"], batch_size=3)
    assert _relative_error(energy, reference["energy"]) < 1e-9

    # Log Z by another way: many noises instead of the images given.
    network = dualscore.load(released).double()
    t = torch.full((400,), 1e3, dtype=torch.float64)
    noise = torch.randn(400, 3, 16, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    around = network.energy(0.5 + noise * 1e3**0.5, t) - 0.5 * noise.square().sum(dim=(1, 2, 3))
    expected = noise_entropy(768, 1e3) - 0.5 * 768 - float(around.mean())
    assert model.log_normalizer == pytest.approx(expected, abs=4 * model.log_normalizer_stderr)

    # The images that were given are those to rank among: one of them has the rank of its place.
    workspace.run("score", "made", "images/000.png", "images/007.png", "--out", "scored", "--no-maps")
    assert model.origin is not None
    assert model.origin.energies is not None
    stored = np.stack([np.array(picture(k, 16, 5.0 + k)) for k in range(12)])
    shown = torch.from_numpy(stored).permute(0, 3, 1, 2) / 255.0
    by_hand = network.energy(shown).sort().values
    assert torch.allclose(model.origin.energies, by_hand, rtol=1e-3, atol=0.0)
    pixels = shown[7:8]
    own = float(dualscore.load("made").energy(pixels).double())
    place = int((model.origin.energies > own + 1e-4 * abs(own)).sum())
    assert float(rows(Path("scored"))[1]["percentile"]) == pytest.approx(
        100 * (place + 0.5) / 12, abs=100 * 0.51 / 12
    )
    card = Path("made/README.md").read_text()
    assert _sha256(released) in card
    assert "on 12 images at t = 1000" in card


def test_a_converted_denoiser_has_no_log_z_and_says_so(workspace: Workspace) -> None:
    fill(workspace.folder / "images", 2)
    for more in ([], ["--images", "images"], ["--no-normalizer"]):
        printed = workspace.run("convert", str(DATA / "denoiser_small.pth.tar"), "--out", "made", *more)
        assert "a denoiser: it has no energy, so no log Z" in printed
    model, reference = dualscore.load("made").double(), _reference("denoiser_small", torch.float64)
    denoised = model.denoise(reference["noisy"], reference["noise_variance"])
    assert _relative_error(denoised, reference["denoised"]) < 1e-9
    with pytest.raises(NormalizationError, match="denoiser"):
        model.log_prob(reference["clean"])


def test_log_z_is_estimated_or_left_out_by_request_only(workspace: Workspace) -> None:
    released = str(DATA / "energy_small.pth.tar")
    line = workspace.fail("convert", released, "--out", "made", status=4)
    assert "--images" in line
    assert "--no-normalizer" in line
    assert not Path("made").exists()
    printed = workspace.run("convert", released, "--out", "made", "--no-normalizer")
    assert "without log Z" in printed
    model = dualscore.load("made")
    assert model.image_shape is None
    with pytest.raises(NormalizationError, match="normalization is not known"):
        model.log_prob(torch.rand(2, 3, 8, 8))
    # It can still be scored with where that is asked for.
    workspace.run("score", "made", str(fill(Path("images"), 3, 16)), "--normalize", "--no-maps")


def _convert(images: list[Path], out: Path, **options: Any) -> Path:
    return convert(DATA / "energy_small.pth.tar", images, out, QUIET, **options)[0]


def test_images_that_give_no_log_z_are_an_error(tmp_path: Path) -> None:
    empty, broken, odd = tmp_path / "empty", tmp_path / "broken", fill(tmp_path / "odd", 3, 15)
    for folder in (empty, broken):
        folder.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    one = fill(tmp_path / "one", 1, 16)
    for images, complaint in (
        (empty, "no image that can be read"),
        (broken, "no image that can be read"),
        (odd, "15×15; the network takes sides divisible by 8"),
        (one, "needs at least 2 images, got 1"),
        (tmp_path / "missing", "no such file or folder"),
    ):
        with pytest.raises(DualscoreError, match=complaint):
            _convert([images], tmp_path / "made")
        assert not (tmp_path / "made").exists()


def test_images_of_mixed_sizes_are_resized_by_request(tmp_path: Path) -> None:
    mixed = fill(tmp_path / "images", 3, 16)
    picture(5, 40).save(mixed / "later.png")
    path = _convert([mixed], tmp_path / "made", resize=True)
    model = dualscore.load(path)
    assert model.image_shape == (3, 16, 16)
    assert model.origin is not None
    assert model.origin.energies is not None
    assert len(model.origin.energies) == 4


def test_log_z_does_not_depend_on_the_batches(tmp_path: Path) -> None:
    """The energies that are kept neither, but for rounding."""
    images = fill(tmp_path / "images", 9, 16)
    found = [
        dualscore.load(_convert([images], tmp_path / str(n), batch_size=n, workers=w))
        for n, w in ((9, 0), (4, 1))
    ]
    one, other = (model.origin for model in found)
    assert one is not None
    assert one.energies is not None
    assert other is not None
    assert other.energies is not None
    assert torch.allclose(one.energies, other.energies, rtol=1e-5)
    assert found[0].log_normalizer == pytest.approx(found[1].log_normalizer, rel=1e-5)


def test_export_and_convert_know_their_own(workspace: Workspace, demo_shards: Path) -> None:
    released = str(DATA / "energy_small.pth.tar")
    assert "use convert" in workspace.fail("export", released)
    checkpoint(Path("x.ckpt"), "patches_dual", f"data.path={demo_shards}")
    assert "for ours, use export" in workspace.fail("convert", "x.ckpt", "--no-normalizer")
    assert "no such file" in workspace.fail("convert", "nothing.pth.tar", "--no-normalizer")
    assert "no such checkpoint" in workspace.fail("export", "nothing.ckpt")


def test_a_network_of_neither_gray_nor_colour_cannot_be_shown_files(tmp_path: Path) -> None:
    from dualscore.scoring.scorer import wanted_size

    energy = of_any_size().score_model
    energy.network = unet(2)  # type: ignore[assignment]
    with pytest.raises(ScoreError, match="2 channels"):
        wanted_size(ImageModel(energy), [tmp_path], tmp_path, resize=False, normalize=True)

"""Figures and tables of the paper, from shrunken runs and from what is known."""

import contextlib
import csv
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import dualscore
from dualscore.cli import main
from dualscore.energy import Energy
from dualscore.errors import FigureError
from dualscore.figures.around_images import haar_details, participation_ratio
from dualscore.figures.paper_tables import gaussian_denoising
from dualscore.figures.trained import Trained
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood import decibels_per_dim
from dualscore.measuring.quantities import noise_levels
from dualscore.measuring.subject import Images, Subject
from dualscore.noise import fixed_noise
from dualscore.settings.config import Half
from test_distribution import released_energies
from test_gaussian import random_spectrum
from workspace import TINY, Workspace

VECTORS = [
    *TINY, "network.width=8", "data.size=40", "data.workers=0", "trainer.max_steps=2",
    "trainer.validate_every=2",
    "optim.warmup_steps=0", "evaluate.estimators=[paper]", "evaluate.psnr=[0]",
]  # fmt: skip
SMALL = [
    *TINY, "trainer.max_steps=2", "trainer.validate_every=2", "optim.warmup_steps=0", "optim.lr=1e-6",
    "evaluate.psnr=[60,15]",
]  # fmt: skip
NAMES = ("table1", "table2", "figure3", "figure4", "figure5")


def numbers(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return content


@pytest.fixture
def demo_run(workspace: Workspace, trained_once: Callable[..., Path], demo_shards: Path) -> Workspace:
    """A run that hardly trained: its energy is nearly that of its anchor."""
    made = trained_once("hardly_trained", "patches_dual", *SMALL, f"data.path={demo_shards}")
    shutil.copytree(made / "runs", workspace.folder / "runs")
    return workspace


@pytest.fixture
def drawn_run(workspace: Workspace, once: Callable[..., Path], demo_run: Workspace) -> Workspace:
    """That run with all its figures; what the command printed is in printed.txt."""

    def fill(folder: Path) -> None:
        shutil.copytree(demo_run.folder / "runs", folder / "runs")
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
            patch.chdir(folder)
            assert main(["figures", "runs/patches_dual"]) == 0
        (folder / "printed.txt").write_text(printed.getvalue())

    shutil.copytree(once("drawn", fill), workspace.folder, dirs_exist_ok=True)
    return workspace


def test_figure_1_is_drawn_from_the_two_runs(workspace: Workspace) -> None:
    figure = ["figures", "runs/scale_mixture_dual", "--only", "1"]
    assert "dualscore train scale_mixture_dual" in workspace.fail(*figure)
    workspace.run("train", "scale_mixture_dual", *VECTORS)
    assert "dualscore train scale_mixture_single" in workspace.fail(*figure)
    workspace.run("train", "scale_mixture_single", *VECTORS)
    printed = workspace.run(*figure, "--out", "drawn")
    folder = workspace.folder / "drawn"
    for ending, magic in (("pdf", b"%PDF"), ("png", b"\x89PNG")):
        file = folder / f"figure1.{ending}"
        assert f"drawn/{file.name}" in printed
        assert file.read_bytes().startswith(magic)
        assert file.stat().st_size > 5000
    found = numbers(folder, "figure1")
    assert set(found["energy_db_per_dim"]) == {"truth", "dual", "single"}
    assert len(found["radius"]) == len(found["energy_db_per_dim"]["dual"])
    assert sum(found["data_histogram"]["counts"]) == 4096
    for name in ("dual", "single"):
        largest = found["largest_error_over_all_db_per_dim"][name]
        assert largest >= max(found["largest_error_db_per_dim"][name]) > 0
    # The true score of the wide component is −r/16 far out, whatever the models say.
    radius, score = found["radius"][-1], found["radial_score"]["truth"][-1]
    assert score == pytest.approx(-radius / 16, rel=0.05)
    # Of vectors there is a histogram, but no image to show or to vary.
    printed = workspace.run("figures", "runs/scale_mixture_dual")
    assert "figure 4 is of images" in printed
    assert "strip" not in numbers(workspace.folder / "runs/scale_mixture_dual/figures", "figure3")


def test_all_of_a_run_are_drawn_and_agree_with_the_model(drawn_run: Workspace) -> None:
    printed = (drawn_run.folder / "printed.txt").read_text()
    folder = drawn_run.folder / "runs/patches_dual/figures"
    assert "left out: figure 1 needs" in printed
    assert "left out: figure 2 needs two networks on disjoint images: dualscore figures runs/pat" in printed
    assert not list(folder.glob("figure2*"))
    for name in NAMES:
        for ending, magic in (("pdf", b"%PDF"), ("png", b"\x89PNG"), ("json", b"{")):
            content = (folder / f"{name}.{ending}").read_bytes()
            assert content.startswith(magic)
            assert len(content) > (0 if ending == "json" else 5000)

    model = dualscore.load(drawn_run.folder / "runs/patches_dual")
    report = drawn_run.report("patches_dual")
    histogram = numbers(folder, "figure3")
    # The histogram's mean is the paper's figure, in the paper's unit: bits = 8 − dB/dim · log₂10/10.
    bits = 8 - histogram["mean"] * math.log2(10) / 10
    assert bits == pytest.approx(report["bits_per_dim"]["paper"]["value"], abs=1e-6)
    assert histogram["images"] == report["bits_per_dim"]["paper"]["images"] == 64
    assert sum(histogram["histogram"]["counts"]) == 64
    assert histogram["strip"]["decibels"] == sorted(histogram["strip"]["decibels"])
    level = histogram["best_constant"]["level"] / 255
    # The evaluation's log Z, not the checkpoint's: both are estimates.
    log_z = histogram["log_normalizer"]["value"]

    def decibels(gray: float) -> float:
        return -decibels_per_dim(float(model.energy(torch.full((1, 1, 16, 16), gray))) + log_z, 256)

    assert decibels(level) == pytest.approx(histogram["best_constant"]["decibels"], abs=1e-4)

    slices = numbers(folder, "figure4")
    run = Trained(drawn_run.folder / "runs/patches_dual", Console(quiet=True))
    for image in slices["images"]:
        (pixels,) = run.session.images(run.session.reported, [image["position"]])
        contrast, brightness = slices["contrast"][6], slices["brightness"][15]
        varied = contrast * (pixels - pixels.mean()) + brightness
        energy = model.energy((255 * varied[None]).round() / 255)
        assert image["log_p"][6][15] == pytest.approx(-decibels_per_dim(float(energy) + log_z, 256), abs=1e-3)
        best = np.unravel_index(np.argmax(image["log_p"]), np.shape(image["log_p"]))
        assert image["best"] == {
            "contrast": slices["contrast"][best[0]], "brightness": slices["brightness"][best[1]],
        }  # fmt: skip
        # No contrast and no brightness is black, whatever the image.
        assert image["log_p"][0][0] == pytest.approx(decibels(0.0), abs=1e-4)
        assert np.shape(image["log_p"]) == (len(slices["contrast"]), len(slices["brightness"]))
    assert len(slices["sparsity"]["log_p"]) == 64

    dimension = numbers(folder, "figure5")
    assert np.allclose(
        dimension["mean"]["effective_dimension"][-1], dimension["gaussian_effective_dimension"][-1], rtol=0.7
    )  # of other photographs, whose brightness is farther from the training images' mean
    assert dimension["mean"]["effective_dimension"][0] == pytest.approx(256, rel=0.05)
    # U(y, t) at the smallest noise is nearly U(x, 0), and at the largest nearly that of the noise.
    quantile = dimension["images"][0]
    assert quantile["log_p_db_per_dim"][-1] == pytest.approx(dimension["noise_log_p_db_per_dim"][-1], abs=0.5)
    # As the mean curve's, a chosen image is dequantized, on which the model was trained.
    position, t = quantile["position"], dimension["noise_variance"][0]
    (chosen,) = run.session.images(run.session.reported, [position])
    image = Images(chosen[None], [position]).as_trained(run.session.subject)
    seed, d = run.session.subject.seed, 256
    noise = torch.cat([fixed_noise([position], (1, 16, 16), seed, draw) for draw in range(8)])
    energy = model.energy(image + math.sqrt(t) * noise, t).mean()
    assert quantile["log_p_db_per_dim"][0] == pytest.approx(
        -decibels_per_dim(float(energy) + log_z, d), abs=1e-3
    )

    table = numbers(folder, "table1")["columns"]
    assert set(table) == {"best Gaussian", "patches_dual, energy"}
    levels = {f"{level['psnr_in']:g}": level["psnr_out"] for level in report["noise_levels"]}
    assert table["patches_dual, energy"] == pytest.approx(levels)
    # Hardly trained, it denoises as its anchor does.
    assert table["patches_dual, energy"]["15"] == pytest.approx(table["best Gaussian"]["15"], abs=1.0)
    with (folder / "table2.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["model", "bits/dim", "data", "kind", "images"]
    assert [row[2] for row in rows if row[0] == "VDM (published)"] == ["ImageNet64 old"]
    assert [row[1:3] for row in rows if row[0] == "TarFlow (published)"] == [["2.99", "ImageNet64 new?"]]
    assert [row[2] for row in rows if row[0].startswith("patches_dual")] == ["demo 1×16×16"]


def test_images_stand_at_the_quantiles_that_are_said(drawn_run: Workspace) -> None:
    folder = drawn_run.folder / "runs/patches_dual"
    (part,) = (folder / "evaluation").glob("paper-*/*.npz")
    with np.load(part) as content:
        energies = dict(zip(content["position"].tolist(), content["energy"].tolist(), strict=True))
    for name in ("figure4", "figure5"):
        for image in numbers(folder / "figures", name)["images"]:
            less_probable = sum(e > energies[image["position"]] for e in energies.values())
            share = less_probable / (len(energies) - 1)
            assert share == pytest.approx(image["quantile"], abs=0.51 / (len(energies) - 1))


def test_nothing_is_computed_twice(drawn_run: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    costly = ["figures", "runs/patches_dual", "--only", "3", "4", "5"]
    names = [f"figure{number}" for number in costly[3:]]
    folder = drawn_run.folder / "runs/patches_dual"
    before = {name: numbers(folder / "figures", name) for name in names}
    # One part of two computations is lost, as after an interruption.
    for stage in ("profiles", "contrast"):
        (part,) = (folder / "evaluation").glob(f"{stage}-*/*.npz")
        content = dict(np.load(part))
        np.savez(part, **{name: values[::2] for name, values in content.items()})
    seen: list[int] = []
    forward = Energy.forward

    def counted(self: Energy, noisy: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        seen.append(len(noisy))
        return forward(self, noisy, noise_variance)

    monkeypatch.setattr(Energy, "forward", counted)
    drawn_run.run(*costly)
    again = {name: numbers(folder / "figures", name) for name in names}
    assert again == before
    lost = (3 * 25 // 2) * 25 + (4 * 33 // 2) * 8
    assert sum(seen) == lost
    seen.clear()
    drawn_run.run(*costly, "table1", "table2")
    assert not seen


def test_pairs_of_halves_are_found_and_compared(workspace: Workspace, demo_shards: Path) -> None:
    # So different that a mix-up of the two shows.
    # Evaluated without the paper's protocol, which the figure needs nevertheless.
    common = [
        *SMALL, f"data.path={demo_shards}", "data.images=40", "optim.lr=1e-2", "optim.ema_steps=0",
        "evaluate.estimators=[bound]",
    ]  # fmt: skip
    for half in "AB":
        workspace.run("train", "patches_dual", *common, f"data.half={half}", "--name", f"half_{half}")
    # Another size, without a partner, is no pair.
    odd = [*SMALL, f"data.path={demo_shards}", "data.images=48", "data.half=B"]
    workspace.run("train", "patches_dual", *odd, "--name", "odd")
    workspace.run("figures", "runs/half_A", "--only", "2")
    found = numbers(workspace.folder / "runs/half_A/figures", "figure2")
    (pair,) = found["pairs"]
    assert pair["training_images"] == 40
    assert {Path(run).name for run in pair["runs"].values()} == {"half_A", "half_B"}
    assert {name: one["images"] for name, one in pair["sets"].items()} == {
        "A": 32, "B": 32, "held out": 64,
    }  # fmt: skip

    # Each figure is what the two models say of the images themselves.
    models = [dualscore.load(workspace.folder / f"runs/half_{half}") for half in "AB"]
    held_out = pair["sets"]["held out"]
    owners = {h: Trained(workspace.folder / f"runs/half_{h}", Console(quiet=True)) for h in "AB"}
    owner = owners["B"]
    assert owner.config.data.half is Half.B
    positions = owner.session.run(owner.stages["train_paper"])["position"].tolist()
    images = owner.session.images("train", positions)
    for mine, key, side in (("A", "log_p_a", 0), ("B", "log_p_b", 1)):
        # With the evaluation's log Z of each, which is not the checkpoint's: both are estimates.
        log_z = owners[mine].log_z.value
        said = -decibels_per_dim(models[side].energy(images).double() + log_z, 256)
        assert said.tolist() == pytest.approx(pair["sets"]["B"][key], abs=1e-5)
    # Nats: 3e-5 dB/dim at least, so that a mix-up of the two shows.
    assert abs(owners["A"].log_z.value - owners["B"].log_z.value) > 2e-3
    assert held_out["mean_absolute_difference"] == pytest.approx(
        float(np.abs(np.subtract(held_out["log_p_a"], held_out["log_p_b"])).mean())
    )

    named = ["figures", "runs/half_A", "--only", "2", "--other"]
    workspace.run(*named, "runs/half_B", "--out", "named")
    assert numbers(workspace.folder / "named", "figure2")["pairs"] == found["pairs"]
    assert "is the same network" in workspace.fail(*named, "runs/half_A")
    assert "no such run" in workspace.fail(*named, "runs/half_C")
    workspace.run("train", "patches_dual", *common, "data.half=A", "seed=1", "--name", "again")
    assert "was trained on the same images" in workspace.fail(*named, "runs/again")


def test_a_denoiser_has_tables_and_stands_beside_the_energy(demo_run: Workspace, demo_shards: Path) -> None:
    demo_run.run("train", "patches_denoiser", *SMALL, f"data.path={demo_shards}")
    demo_run.run("figures", "runs/patches_dual", "--only", "table1")
    columns = numbers(demo_run.folder / "runs/patches_dual/figures", "table1")["columns"]
    levels = demo_run.report("patches_denoiser")["noise_levels"]
    assert columns["patches_denoiser, score network"] == pytest.approx(
        {f"{level['psnr_in']:g}": level["psnr_out"] for level in levels}
    )
    # A score network that was measured on other images does not stand beside it.
    fewer = ["evaluate.subset_images=7", "--out", "fewer"]
    demo_run.run("figures", "runs/patches_dual", *fewer, "--only", "table1")
    assert "patches_denoiser, score network" not in numbers(demo_run.folder / "fewer", "table1")["columns"]
    printed = demo_run.run("figures", "runs/patches_denoiser")
    assert "figure 3 needs an energy" in printed
    assert (demo_run.folder / "runs/patches_denoiser/figures/table1.png").exists()


def test_a_run_whose_best_checkpoint_is_damaged_is_drawn_all_the_same(demo_run: Workspace) -> None:
    folder = demo_run.folder / "runs/patches_dual"
    (folder / "checkpoints/best.ckpt").write_bytes(b"cut")
    printed = demo_run.run("figures", "runs/patches_dual", "--only", "table2")
    assert "measuring the next best" in printed
    assert numbers(folder / "figures", "table2")["bits_per_dim"].keys() == {"paper"}
    report = json.loads((folder / "evaluation.json").read_text())
    del report["verdict"]
    (folder / "evaluation.json").write_text(json.dumps(report))
    complaint = demo_run.fail("figures", "runs/patches_dual", "--only", "table2")
    assert "evaluation.json: is not what this version writes (KeyError('verdict'))" in complaint


def test_released_energies_are_drawn_as_published(workspace: Workspace) -> None:
    energies = released_energies()
    np.save(workspace.folder / "released.npy", energies.numpy())
    workspace.run("figures", "released.npy", "--dimension", "4096", "--out", "drawn")
    found = numbers(workspace.folder / "drawn", "figure3")
    assert found["median"] == pytest.approx(10.67, abs=0.01)
    assert found["gumbel"] == pytest.approx({"location": 9.57, "scale": 3.17}, abs=0.01)
    assert found["above_probability_1"] == pytest.approx(0.0127, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["runs/no"], "no such run; there are no runs yet; "),
        (["runs/no", "--only", "7"], "there is no figure '7'; there are: table1, table2, 1, 2"),
        (["no.npy", "--dimension", "4"], "no.npy: no such file"),
        (["text.npy", "--dimension", "4"], "text.npy: "),
        (["objects.npy", "--dimension", "4"], "objects.npy: Object arrays cannot be loaded"),
        (["whole.npy", "--dimension", "4"], "holds no array of floating-point numbers"),
        (["square.npy", "--dimension", "4"], "a distribution needs 2 energies or more, got shape (2, 2)"),
        (["zip.npy", "--dimension", "4"], "zip.npy: File is not a zip file"),
        (["huge.npy", "--dimension", "4"], "huge.npy: Unable to allocate"),
        (["large.npy", "--dimension", "4"], "energies are too large to have a variance"),
        (["square.npy", "--dimension", "4", "--only", "4"], "of energies alone there is figure 3"),
        (["square.npy", "a=b", "--dimension", "4"], "of energies alone there is figure 3"),
        (["square.npy"], "say of how many dimensions with --dimension"),
    ],
)
def test_what_cannot_be_drawn_is_said(workspace: Workspace, arguments: list[str], complaint: str) -> None:
    (workspace.folder / "text.npy").write_text("energies")
    np.save(workspace.folder / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    (workspace.folder / "zip.npy").write_bytes(b"PK\x03\x04" + bytes(50))
    with (workspace.folder / "huge.npy").open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**14,)}
        np.lib.format.write_array_header_1_0(file, header)
    np.save(workspace.folder / "large.npy", np.array([1e308, -1e308]))
    np.save(workspace.folder / "whole.npy", np.arange(4))
    np.save(workspace.folder / "square.npy", np.eye(2))
    assert complaint in workspace.fail("figures", *arguments)


def test_a_participation_ratio_counts() -> None:
    assert participation_ratio(np.array([[0.0, 3.0, 0.0, 0.0]])) == pytest.approx(1 / 4)
    assert participation_ratio(np.array([[2.0, -2.0, 2.0, 2.0]])) == pytest.approx(1)
    assert participation_ratio(np.zeros((2, 5))) == pytest.approx(1)
    # E c⁴ = 3 (E c²)² of normal coefficients.
    normal = np.random.default_rng(0).normal(size=(1, 200_000))
    assert participation_ratio(normal) == pytest.approx(1 / 3, rel=0.02)
    assert participation_ratio(7 * normal) == pytest.approx(participation_ratio(normal))


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 8)])
def test_haar_details_are_all_but_the_mean(shape: tuple[int, int, int]) -> None:
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    details = haar_details(images)
    assert details.shape == (4, shape[0] * (shape[1] * shape[2] - 1))
    # The transform is orthonormal, and what is left out is each channel's mean.
    centred = images.double() - images.double().mean(dim=(2, 3), keepdim=True)
    assert np.square(details).sum(axis=1) == pytest.approx(centred.square().sum(dim=(1, 2, 3)).numpy())
    assert haar_details(torch.full((1, 1, 8, 8), 0.3)) == pytest.approx(0.0)


def test_haar_details_of_any_even_sides_are_orthonormal() -> None:
    images = torch.rand(2, 1, 24, 20, generator=torch.Generator().manual_seed(0))
    details = haar_details(images)  # two halvings: blocks of 4×4, of which the means are left out
    means = images.double().unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(-1, -2))
    rest = images.double().square().sum(dim=(1, 2, 3)) - 16 * means.square().sum(dim=(1, 2, 3))
    assert details.shape == (2, 24 * 20 - 6 * 5)
    assert np.square(details).sum(axis=1) == pytest.approx(rest.numpy())
    with pytest.raises(FigureError, match="odd sides"):
        haar_details(torch.zeros(1, 1, 9, 8))


class _Nothing(torch.nn.Module):
    """A network that adds nothing to its anchor."""

    def forward(self, image: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(image)


def test_the_gaussians_denoising_is_wieners() -> None:
    """Of its own samples the error is (1/d) Σ λt/(λ + t)."""
    gaussian = StationaryGaussian(torch.tensor([0.5]), random_spectrum(1, 8, 8)).double()
    count, variances = 4000, [1e-3, 0.1, 10.0]
    clean = gaussian.sample(count, torch.Generator().manual_seed(0))
    subject = Subject(
        Energy(_Nothing(), gaussian), gaussian, None, quantized=False, dequantize=False, t_range=(1e-3, 10.0),
        seed=0,
    )  # fmt: skip
    stage = gaussian_denoising(variances, "val", count)
    images = Images(clean, list(range(count)))
    rows = stage.measure(subject, images)
    # Networks see the same noise: an energy that is this Gaussian's has the same errors.
    measured = noise_levels(variances, "val", count).measure(subject, images)
    torch.testing.assert_close(measured["space"] * torch.tensor(variances), rows["squared_error"])
    for column, t in enumerate(variances):
        found = rows["squared_error"][:, column]
        eigenvalues = gaussian.eigenvalues
        expected = float((eigenvalues * t / (eigenvalues + t)).mean())
        assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / math.sqrt(count))


def test_a_covariance_that_is_too_large_is_left_out_of_table_2(demo_run: Workspace) -> None:
    """Above 4,096 dimensions, as ImageNet64 in colour is, the report says null and why."""
    path = demo_run.folder / "runs/patches_dual/evaluation.json"
    report = json.loads(path.read_text())
    report["yardsticks"]["full_covariance"] |= {"value": None, "note": "d = 12,288 is too large"}
    path.write_text(json.dumps(report))
    demo_run.run("figures", "runs/patches_dual", "--only", "table2")
    table = (demo_run.folder / "runs/patches_dual/figures/table2.csv").read_text()
    assert "Gaussian, stationary" in table
    assert "full covariance" not in table

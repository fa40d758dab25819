"""What TensorBoard shows of whole runs: from the log, from its server, and in a browser."""

import json
import math
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2, metadata

from benchmarks.screenshots import CARDS, LAYOUT, browser, category, chromium, show, tensorboard
from dualscore.dashboard.logger import PatientLogger, describe, level
from dualscore.dashboard.run_log import hparams_metrics, layout, neighbour
from dualscore.errors import DivergenceError
from dualscore.gaussian import StationaryGaussian
from dualscore.measuring.estimators import ESTIMATORS
from dualscore.noise import psnr
from dualscore.pictures.grids import COLOURS, colour, common_scale
from dualscore.runs.folder import Run
from dualscore.runs.run_status import State, Status
from dualscore.settings.experiment import load_experiment, to_plain
from dualscore.train_experiment import train
from dualscore.training.callbacks.journal import Journal
from test_reported import without_test
from workspace import ROOT, TINY, Workspace

NOT_SHOWN = re.compile(r"epoch|.*_stderr|final/(psnr_.*|step)")
"""Scalars that are for programs or for HPARAMS."""
CONFIG = "custom_scalars__config__"


def read(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), {"scalars": 0, "tensors": 0, "histograms": 0}).Reload()


def stored_layout(events: EventAccumulator) -> Layout:
    return Layout.FromString(events.Tensors(CONFIG)[-1].tensor_proto.string_val[0])


def text(events: EventAccumulator, tag: str) -> str:
    """The last of a tag."""
    return events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()


def patterns(found: Layout) -> list[str]:
    """Of all charts."""
    charts = [chart for part in found.category for chart in part.chart]
    lines = [tag for chart in charts for tag in chart.multiline.tag]
    series = [one for chart in charts for one in chart.margin.series]
    return lines + [re.escape(tag) + "$" for one in series for tag in (one.value, one.lower, one.upper)]


def test_the_layout_and_the_log_are_of_the_same_curves(trained_demo: Path) -> None:
    events = read(trained_demo / "runs/patches_dual")
    tags = events.Tags()["scalars"]
    found = stored_layout(events)
    for pattern in patterns(found):
        assert any(re.match(pattern, tag) for tag in tags), pattern
    hidden = [tag for tag in tags if not any(re.match(pattern, tag) for pattern in patterns(found))]
    assert hidden
    assert [tag for tag in hidden if not NOT_SHOWN.fullmatch(tag)] == []
    titles = [chart.title for part in found.category for chart in part.chart]
    assert len(titles) == len(set(titles))
    assert found.category[0].title.startswith("Bits/dim")
    assert not found.category[0].closed


def test_the_evaluation_stands_in_the_log_and_in_hparams(trained_demo: Path) -> None:
    run = trained_demo / "runs/patches_dual"
    events, report = read(run), json.loads((run / "evaluation.json").read_text())
    for name, figure in report["bits_per_dim"].items():
        *_, last = events.Scalars(f"final/{name}")
        assert (last.step, last.value) == (1, pytest.approx(figure["value"]))
        width = events.Scalars(f"final/{name}_high")[-1].value - events.Scalars(f"final/{name}_low")[-1].value
        assert width == pytest.approx(2 * 2.0 * figure["stderr"], rel=1e-3)
    full = [(event.step, event.value) for event in events.Scalars("gaussian/full_covariance")]
    assert full == [
        (step, pytest.approx(report["yardsticks"]["full_covariance"]["value"])) for step in (0, 1)
    ]
    usual = {name: estimator.label for name, estimator in ESTIMATORS.items() if not estimator.costly}
    assert hparams_metrics(usual).keys() <= set(events.Tags()["scalars"])
    stored = events.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    ended = metadata.parse_session_end_info_plugin_data(stored)
    assert ended.status == api_pb2.Status.Value("STATUS_SUCCESS")
    assert "Wiener" in events.SummaryMetadata("psnr_gain_linear/+30dB").summary_description
    assert describe("val/bound") == events.SummaryMetadata("val/bound").summary_description
    (histogram,) = events.Histograms("val/energies")
    assert histogram.histogram_value.num == 32
    mean = histogram.histogram_value.sum / 32  # log p in dB/dim; 8 bits are the density on [0, 1]
    bits = events.Scalars("val/bits_per_dim")[-1].value
    assert -mean == pytest.approx((bits - 8.0) * 10 * math.log10(2), abs=1e-3)


def test_a_run_that_goes_on_is_one_run_and_says_so(workspace: Workspace, demo_shards: Path) -> None:
    # Without a test split the validation images are those that are reported.
    shards = without_test(demo_shards, workspace.folder / "shards", photographs=True)
    settings = [*TINY, f"data.path={shards}", "trainer.validate_every=2", "optim.warmup_steps=0"]
    settings += ["trainer.validate_images=64", "data.workers=0"]
    workspace.run("train", "patches_dual", *settings, "trainer.max_steps=2")
    workspace.run("train", "patches_dual", *settings, "trainer.max_steps=4")
    run = workspace.folder / "runs/patches_dual"
    events = read(run)
    for tag in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps)) or tag == "epoch", tag  # which Lightning tells with everything
    assert [event.step for event in events.Scalars("val/bound")] == [1, 3]
    assert [event.value for event in events.Scalars("events/resumed")] == [0, 1]
    assert "goes on from step 2; before: complete" in text(events, "run/events")
    minutes = [event.value for event in events.Scalars("train/minutes")]
    assert minutes[1] > minutes[0] > 0
    # Measured in the first validation, of the same images as the evaluation's.
    stationary = [event.value for event in events.Scalars("gaussian/stationary")]
    assert (
        stationary
        == [pytest.approx(workspace.report("patches_dual")["yardsticks"]["stationary"]["value"], abs=0.02)]
        * 2
    )
    with tensorboard(workspace.folder / "runs") as url:
        served = json.load(urllib.request.urlopen(f"{url}/data/plugin/custom_scalars/layout"))
        assert json.load(urllib.request.urlopen(f"{url}/data/runs")) == ["patches_dual"]
        scalars = json.load(urllib.request.urlopen(f"{url}/data/plugin/scalars/tags"))["patches_dual"]
    titles = [chart["title"] for part in served["category"] for chart in part["chart"]]
    assert len(titles) == len(set(titles)) > 20
    # Behind the ⓘ, where TensorBoard wraps them in HTML.
    assert "Wiener" in scalars["psnr_gain_linear/+30dB"]["description"]
    assert not [tag for tag, of in scalars.items() if describe(tag) and not of["description"]]


def test_a_score_network_beside_a_run_is_what_it_is_compared_with(
    workspace: Workspace, demo_shards: Path
) -> None:
    settings = [*TINY, f"data.path={demo_shards}", "trainer.validate_every=1", "optim.warmup_steps=0"]
    settings += ["trainer.max_steps=1", "data.workers=0"]
    workspace.run("train", "patches_denoiser", *settings)
    workspace.run("train", "patches_dual", *settings)
    network, dual = (read(workspace.folder / "runs" / f"patches_{name}") for name in ("denoiser", "dual"))
    values = [events.Scalars("psnr/+15dB")[-1].value for events in (dual, network)]
    gain = dual.Scalars("psnr_gain_score_network/+15dB")[-1].value
    assert gain == pytest.approx(values[0] - values[1], abs=1e-4)
    assert (
        "`patches_denoiser`" in dual.Tensors("run/about/text_summary")[0].tensor_proto.string_val[0].decode()
    )
    assert "psnr_gain_score_network/.15dB$" in " ".join(patterns(stored_layout(dual))).replace("\\+", ".")
    assert not any(tag.startswith("psnr_gain_score") for tag in network.Tags()["scalars"])


def test_the_newest_complete_score_network_of_the_same_validation_is_taken(tmp_path: Path) -> None:
    def make(name: str, age: float, psnr_out: float, *settings: str, state: State = State.complete) -> None:
        run = Run(tmp_path / name)
        run.folder.mkdir()
        run.write_config(to_plain(load_experiment("patches_denoiser", list(settings), ROOT / "experiments")))
        Status(state=state).say(run.folder)
        os.utime(run.folder / "status.json", (1e9 - age, 1e9 - age))
        logger = PatientLogger(run.folder, 0, pytest.fail)
        logger.log_metrics({"psnr/+15dB": psnr_out}, 0)
        logger.finalize("success")

    config = load_experiment("patches_dual", [], ROOT / "experiments")

    def found() -> tuple[str, list[float]]:
        name, measured = neighbour(tmp_path / "own", config, to_plain(config))
        return name, list(measured.values())

    assert found() == ("", [])
    for number, setting in enumerate(["seed=7", "trainer.validate_images=8", "evaluate.psnr=[15]"]):
        make(f"other{number}", 0.0, 1.0, setting)
    make("failed", 0.0, 2.0, state=State.failed)
    assert found() == ("", [])
    make("older", 20.0, 3.0)
    make("newer", 10.0, 4.0, "optim.lr=1e-5")
    assert found() == ("newer", [4.0])


def test_two_processes_write_one_log_of_all_images(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*TINY, f"data.path={demo_shards}", "trainer.validate_every=2", "optim.warmup_steps=0"]
    settings += ["trainer.max_steps=2", "data.workers=0", "trainer.devices=2", "trainer.validate_images=33"]
    command = [sys.executable, "-m", "dualscore", "train", "patches_dual", *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=200)
    run = workspace.folder / "runs/patches_dual"
    assert len(list(run.glob("events.*"))) == 2  # of training, and of the evaluation
    events = read(run)
    (histogram,) = events.Histograms("val/energies")
    assert histogram.histogram_value.num == 33
    assert len(events.Scalars("val/bound")) == 1
    assert len(events.Tensors(CONFIG)) == 1


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    logger = PatientLogger(tmp_path, 0, pytest.fail)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_text("b", "text", 0)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finalize("success")
    assert read(tmp_path).Scalars("a")[0].value == 1.0


def test_what_is_logged_again_after_a_crash_replaces_what_was_there(tmp_path: Path) -> None:
    for step, value in ((0, 1.0), (3, 2.0)):
        logger = PatientLogger(tmp_path, step, pytest.fail)
        for later in range(step, 5):
            logger.log_metrics({"a": value}, later)
        logger.finalize("success")
    found = [(event.step, event.value) for event in read(tmp_path).Scalars("a")]
    assert found == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_published_figures_stand_beside_their_data_set_only() -> None:
    charts = {}
    for name in ("imagenet64_dual", "patches_dual"):
        config = load_experiment(name, [], ROOT / "experiments")
        names = ["dual_score_matching"] if name == "imagenet64_dual" else []
        charts[name] = {
            (part.title, chart.SerializeToString())
            for part in layout(config, list(ESTIMATORS), names, False).category
            for chart in part.chart
        }
    # Beside it, all charts are equal, so that TensorBoard draws none twice.
    (extra,) = charts["imagenet64_dual"] ^ charts["patches_dual"]
    assert b"published/dual_score_matching" in extra[1]


def test_published_figures_are_those_of_the_same_release() -> None:
    from dualscore.dashboard.published import comparable

    colour = comparable(colour=True)
    assert (colour["dual_score_matching"], colour["w-pcdm"]) == (3.36, 2.95)
    assert comparable(colour=False) == {"dual_score_matching": 4.205}
    assert not {"glow", "jet", "tarflow", "nfdm"} & colour.keys()  # of the old one, or of nobody knows which


def test_the_linear_denoiser_is_the_gaussians_posterior_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, 3, 3, generator=generator, dtype=torch.float64)
    spectrum = (root @ root.mT + 0.1 * torch.eye(3)).permute(2, 3, 0, 1)
    prior = StationaryGaussian(torch.tensor([0.4, 0.5, 0.6]).double(), spectrum).double()
    noisy = torch.randn(4, 3, 6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([1e-3, 0.1, 1.0, 10.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(prior(noisy, t).energy.sum(), noisy)
    expected = noisy - t[:, None, None, None] * gradient
    torch.testing.assert_close(prior.denoise(noisy, t), expected, rtol=1e-5, atol=1e-6)
    # At infinite noise it says the mean, at none the image.
    torch.testing.assert_close(prior.denoise(noisy, 1e-12 * t), noisy, rtol=1e-6, atol=1e-6)
    assert psnr(1.0) == 0.0


def test_the_journal_goes_on_and_keeps_secrets() -> None:
    shown: list[str] = []
    warned: list[str] = []

    def make() -> Journal:
        return Journal(lambda *entry: shown.append(entry[1]), lambda: None, None)

    first = make()
    tell = first.recording("rollbacks", warned.append)
    tell("the loss | jumped, see https://me:secret@host/x?key=1")
    assert warned == ["the loss | jumped, see https://me:secret@host/x?key=1"]
    assert "secret" not in shown[-1]
    assert r"the loss \| jumped" in shown[-1]
    second = make()
    second.load_state_dict(first.state_dict())
    second.note("rollbacks", "again")
    assert second.counts["rollbacks"] == 2
    assert shown[-1].index("again") < shown[-1].index("jumped")


class _Poison(Callback):
    """Makes the weights NaN before the first validation."""

    def on_validation_start(self, _: Trainer, pl_module: LightningModule) -> None:
        for weights in pl_module.parameters():
            weights.data.fill_(math.nan)


@pytest.mark.parametrize("experiment", ["patches_dual", "patches_denoiser"])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_weights_that_are_not_finite_end_a_training_and_not_its_dashboard(
    experiment: str, workspace: Workspace, demo_shards: Path
) -> None:
    settings = [*TINY, f"data.path={demo_shards}", "trainer.max_steps=2", "trainer.validate_every=2"]
    config = load_experiment(experiment, [*settings, "optim.warmup_steps=0", "optim.ema_steps=0"])
    run = Run(workspace.folder / "runs" / experiment)
    with pytest.raises(DivergenceError, match="is not finite; the last good checkpoint is kept"):
        train(config, run, [_Poison()])
    events = read(run.folder)
    assert math.isnan(events.Scalars("val/loss")[-1].value)
    assert "val/energies" not in events.Tags()["histograms"]
    assert "denoised/+30dB" in events.Tags()["images"]


def test_heat_maps_bear_what_is_not_finite() -> None:
    maps = np.linspace(0.0, 1.0, 32).reshape(2, 4, 4)
    maps[0, 0, :3] = math.nan, math.inf, -math.inf
    low, high = common_scale(maps)
    assert 0.0 < low < high < 1.0
    shown = colour(maps, (low, high))
    assert (shown[0, 0, 0] == shown[0, 0, 1]).all()
    assert (shown[0, 0, 1] == COLOURS[-1]).all()
    assert (shown[0, 0, 2] == COLOURS[0]).all()
    assert common_scale(np.full((1, 2, 2), math.nan)) == (0.0, 1.0)


@pytest.fixture(scope="module")
def address(trained_demo: Path) -> Iterator[str]:
    """TensorBoard's, of a tiny run."""
    if chromium() is None:
        pytest.skip("there is no Chromium")
    with tensorboard(trained_demo / "runs") as url:
        yield url


@pytest.mark.long
def test_a_browser_shows_every_chart_with_its_curves(address: str, trained_demo: Path) -> None:
    found = stored_layout(read(trained_demo / "runs/patches_dual"))
    with browser() as page:
        show(page, address, LAYOUT)
        for part in found.category:
            shown = category(page, part.title)
            cards = shown.locator(CARDS)
            assert cards.count() == len(part.chart)
            for number, chart in enumerate(part.chart):
                shown.get_by_text(chart.title, exact=True).first.wait_for()
                card = cards.nth(number)  # in TensorBoard's own order
                card.locator("text=/Matches \\([1-9]/").wait_for()
                assert card.locator("text=Missing Tags").count() == 0
                assert card.locator("svg path[d*=M]").count() > 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("tab", "element", "words"),
    [
        ("images", "tf-image-loader img", ["denoised/+30dB", "energy_map", "patches_dual"]),
        ("histograms", "vz-histogram-timeseries svg path", ["val/energies", "patches_dual"]),
        ("text", "tf-text-loader", ["run/about", "run/events", "Wiener"]),
        (
            "hparams",
            "tf-hparams-table-view",
            ["patches_dual", "stationary anchor", "bits/dim, bound"],
        ),
    ],
)
def test_a_browser_shows_the_run_in_other_tabs(
    address: str, tab: str, element: str, words: list[str]
) -> None:
    with browser(1900) as page:
        show(page, address, tab)
        page.locator(element).first.wait_for(state="attached")
        for word in words:
            page.get_by_text(word).first.wait_for(state="attached")


def test_levels_that_differ_have_tags_that_differ() -> None:
    assert [level(decibels) for decibels in (90, 0, -15, 22.5, 22.4)] == [
        "+90dB", "+00dB", "-15dB", "+22.5dB", "+22.4dB"
    ]  # fmt: skip

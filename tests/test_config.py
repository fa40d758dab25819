"""Experiments: every shipped one is valid and documented, every mistake is one clear line."""

from pathlib import Path

import pytest
import yaml

from dualscore.errors import ConfigError
from dualscore.runs.folder import Run, differences, fresh_run, newest_run
from dualscore.settings.config import Anchor, Embedding, ExperimentConfig, ModelKind, ResidualInput, Schedule
from dualscore.settings.experiment import available, load_experiment, override_config, to_config, to_plain
from workspace import ROOT

EXPERIMENTS = ROOT / "experiments"


@pytest.mark.parametrize("name", available(EXPERIMENTS))
def test_every_shipped_experiment_is_valid_and_says_what_to_expect(name: str) -> None:
    config = load_experiment(name, folder=EXPERIMENTS)
    assert to_config(to_plain(config)) == config
    header = "".join(
        line for line in (EXPERIMENTS / f"{name}.yaml").read_text().splitlines(True) if line.startswith("#")
    )
    for entry in ("# Run:", "# Hardware:", "# Takes:", "# Expect:"):
        assert entry in header
    assert f"EXP={name}" in header or name == "patches_dual"
    for claim in ("# Takes:", "# Expect:"):
        text = header[header.index(claim) :]
        assert "measured" in text or "published" in text


def test_the_required_experiments_are_there() -> None:
    assert set(available(EXPERIMENTS)) >= {
        "patches_dual", "imagenet64_dual", "imagenet64_gray_dual", "imagenet64_denoiser",
        "imagenet64_best", "imagenet32_dual", "cifar10_dual", "bsds16_gray", "bsds16_causal",
        "bsds32_gray", "bsds32_colour", "bsds300",
        "patches_causal", "photographs_gray", "photographs_colour",
    }  # fmt: skip


def test_the_papers_experiment_is_the_papers() -> None:
    c = load_experiment("imagenet64_dual", folder=EXPERIMENTS)
    assert (c.network.width, c.network.scales, c.network.layers) == (64, 3, 3)
    assert c.network.embedding is Embedding.linear
    assert c.network.output_gain == 1.0
    assert (c.energy.anchor, c.energy.residual_input) == (Anchor.none, ResidualInput.raw)
    assert not c.energy.fading
    assert not c.energy.offset
    assert (c.noise.t_min, c.noise.t_max, c.objective.time_weight) == (1e-9, 1e3, 1.0)
    assert (c.optim.lr, c.optim.schedule, c.optim.halve_every) == (5e-4, Schedule.halving, 100_000)
    assert (c.optim.ema_steps, c.optim.warmup_steps) == (0, 0)
    assert (c.data.batch_size, c.data.flip, c.trainer.max_steps) == (128, True, 1_000_000)
    assert c.trainer.precision == "32-true"
    assert load_experiment("imagenet64_denoiser", folder=EXPERIMENTS).model is ModelKind.denoiser
    assert load_experiment("imagenet64_gray_dual", folder=EXPERIMENTS).data.channels == 1


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("optim.lrr=3", "unknown key; did you mean lr?"),
        ("optimm.lr=3", "unknown key; did you mean optim?"),
        ("optim.lr=fast", "optim.lr: Value 'fast'"),
        ("optim.lr=-1", "optim.lr: must be > 0, not -1.0"),
        ("optim.lr=nan", "optim.lr: must be > 0"),
        ("optim.lr=null", "optim.lr: "),
        ("optim.lr", "write it as key=value"),
        ("optim=3", "optim"),
        ("data.batch_size=1.5", "data.batch_size"),
        ("data.batch_size=100", "must be a multiple of data.streams=8"),
        ("data.channels=2", "data.channels: must be 1 or 3"),
        ("data.size=15", "must be a multiple of 2^scales=4"),
        ("network.scales=4", "must be a multiple of 2^scales=16, "),
        ("network.scales=1000000", "network.scales: must be from 1 to 8"),
        ("optim.lr=*x", "cannot be read"),
        ("optim.lr=${optim.lr}", "optim.lr"),
        ("noise.t_min=1e-50", "noise.t_min: must be > 0"),
        ("noise.t_max=1e39", "noise.t_max"),
        ("evaluate.psnr=[4000]", "evaluate.psnr: must be"),
        ("trainer.devices=3", "data.streams: 8 must be a multiple of the 3 devices"),
        ("trainer.precision=16-mixed", "the inner gradients underflow"),
        ("noise.t_min=0", "noise.t_min: must be > 0"),
        ("noise.t_min=1e4", "noise.t_min: must be below noise.t_max=200"),
        ("noise.t_max=1e-6", "noise.t_max: must exceed (half an 8-bit step)² = 3.8e-06"),
        ("energy.anchor=gauss", "expected one of [none, white, stationary]"),
        ("energy.anchor=none", "energy.fading: needs energy.anchor"),
        ("objective.time_weight=0", "energy.offset: cannot be learned"),
        ("energy.residual_input=raw energy.sizes=true", "energy.sizes: needs energy.residual_input="),
        ("model=denoiser objective.level_weight=1", "objective.level_weight: needs an energy"),
        ("objective.likelihood_weight=1", "objective.likelihood_weight: needs network.kind=causal"),
        ("objective.likelihood_steps=9", "objective.likelihood_steps: needs network.kind=causal"),
        ("network.kind=causal", "network.kind: causal is an energy by itself"),
        ("model=denoiser", "energy: a denoiser has no energy to configure"),
        ("optim.schedule=cosine optim.final_lr=1", "optim.final_lr: must not exceed"),
        ("optim.warmup_steps=5000", "optim.warmup_steps: 5000 must be below trainer.max_steps=900"),
        ("trainer.max_steps=100", "override 'trainer.max_steps=100': optim.warmup_steps: 100 must be below"),
        ("trainer.max_steps=150", "trainer.max_steps"),
        ("evaluate.psnr=[]", "evaluate.psnr: must be"),
        ("name=other", "cannot be changed"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_it(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment("patches_dual", override.split(), EXPERIMENTS)
    message = str(caught.value)
    assert complaint in message
    assert "\n" not in message
    assert "override" in message or "patches_dual.yaml" in message


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("data: [", "not valid YAML"),
        ("just text", "just text: unknown key"),
        ("- 1\n- 2", "holds no keys"),
        ("seed: 1\nseed: 2", "not valid YAML"),
        ({"data": {"path": "x", "dataset": "demo"}}, "data.size: is required"),
        (
            {"data": {"path": "x", "dataset": "demo", "size": 16, "sise": 16}},
            "data.sise: unknown key; did you mean size",
        ),
        ({"parent": "nothing"}, "experiment 'nothing' does not exist"),
        ({"parent": "child"}, "one level is the limit"),
        ({"data": {"path": "x", "dataset": "demo", "size": "${oc.env:HOME}"}}, "data.size"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, content: object, complaint: str) -> None:
    write(tmp_path, "parent", {"data": {"path": "x", "dataset": "demo", "size": 16}})
    write(tmp_path, "child", {"parent": "parent"})
    write(tmp_path, "wrong", content)
    with pytest.raises(ConfigError) as caught:
        load_experiment("wrong", folder=tmp_path)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_child_overrides_its_parent_and_an_override_both(tmp_path: Path) -> None:
    write(tmp_path, "parent", {"data": {"path": "x", "dataset": "demo", "size": 16}, "optim": {"lr": 0.1}})
    write(tmp_path, "child", {"parent": "parent", "optim": {"lr": 0.2, "ema_steps": 7}})
    assert load_experiment("parent", folder=tmp_path).optim.lr == 0.1
    child = load_experiment("child", folder=tmp_path)
    assert (child.optim.lr, child.optim.ema_steps, child.data.size) == (0.2, 7, 16)
    assert load_experiment("child", ["optim.lr=3e-4"], tmp_path).optim.lr == 3e-4


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("objective.time_weight=0", "objective.time_weight: must be above 0 with objective.likelihood"),
        ("trainer.best=loss", "trainer.best: must be bound with objective.likelihood_weight"),
        ("energy.anchor=white", "network.kind: causal is an energy by itself"),
        ("model=denoiser", "network.kind: causal is an energy by itself"),
    ],
)
def test_what_a_causal_energy_cannot_have_is_named(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment("bsds16_causal", [override], EXPERIMENTS)
    assert complaint in str(caught.value)


def test_an_unknown_experiment_lists_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="did you mean imagenet64_dual") as caught:
        load_experiment("imagenet64_duel", folder=EXPERIMENTS)
    assert "there are: bsds16_causal, bsds16_gray, " in str(caught.value)


def test_runs_are_numbered_and_the_newest_goes_on(tmp_path: Path) -> None:
    assert newest_run("a", tmp_path).folder.name == "a"
    for _ in range(11):
        fresh_run("a", tmp_path).folder.mkdir()
    (tmp_path / "a-b").mkdir()
    (tmp_path / "ab").mkdir()
    assert newest_run("a", tmp_path).folder.name == "a-11"
    assert fresh_run("a", tmp_path).folder.name == "a-12"
    assert fresh_run("b", tmp_path).folder.name == "b"


def make_run(folder: Path, experiment: str) -> None:
    """A run's folder, as training leaves it."""
    Run(folder).write_config({"name": experiment})


def test_an_experiment_whose_name_ends_in_a_number_is_no_run_of_another(tmp_path: Path) -> None:
    make_run(tmp_path / "unet-64", "unet-64")
    assert newest_run("unet", tmp_path).folder.name == fresh_run("unet", tmp_path).folder.name == "unet"
    make_run(tmp_path / "unet", "unet")
    make_run(tmp_path / "unet-2", "unet-2")
    assert newest_run("unet", tmp_path).folder.name == "unet"
    fresh = fresh_run("unet", tmp_path).folder
    assert fresh.name == "unet-3"  # unet-2 is there
    make_run(fresh, "unet")
    assert newest_run("unet", tmp_path).folder.name == "unet-3"
    for own in ("unet-2", "unet-64"):
        assert newest_run(own, tmp_path).folder.name == own
        assert fresh_run(own, tmp_path).folder.name == f"{own}-2"


def test_runs_of_a_chosen_name_are_numbered_whatever_their_experiment(tmp_path: Path) -> None:
    for name in ("other", "sub/other"):
        for number in range(1, 4):
            fresh = fresh_run(name, tmp_path).folder
            assert not fresh.exists()
            assert fresh == tmp_path / (f"{name}-{number}" if number > 1 else name)
            make_run(fresh, "unet-64")
            assert newest_run(name, tmp_path).folder == fresh


@pytest.mark.parametrize("content", [None, "name: [", "- a list", "{}"])
def test_a_numbered_run_without_a_configuration_that_can_be_read_counts(
    tmp_path: Path, content: str | None
) -> None:
    (tmp_path / "a-2").mkdir()
    if content is not None:
        (tmp_path / "a-2/config.yaml").write_text(content)
    assert newest_run("a", tmp_path).folder.name == "a-2"
    assert fresh_run("a", tmp_path).folder.name == "a-3"


@pytest.mark.parametrize("chosen", ["a-1", "a-02", "a-0"])
def test_a_number_that_no_fresh_run_has_is_a_name(tmp_path: Path, chosen: str) -> None:
    make_run(tmp_path / "a", "a")
    make_run(tmp_path / chosen, "a")
    assert newest_run("a", tmp_path).folder.name == "a"
    assert fresh_run("a", tmp_path).folder.name == "a-2"


def test_differences_name_dotted_keys() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == {
        "a.c": (2, 3),
        "d": (None, 4),
    }


def test_grey_levels_have_a_phase_and_floats_have_none() -> None:
    with pytest.raises(ConfigError, match=r"energy\.phase: needs data\.quantized=true"):
        load_experiment("gaussian_textures_float", ["energy.phase=true"], EXPERIMENTS)


def test_a_size_is_settings_that_go_together_under_those_given() -> None:
    def loaded(name: str, *overrides: str) -> ExperimentConfig:
        return load_experiment(name, overrides, EXPERIMENTS)

    plain = loaded("patches_causal")
    assert loaded("patches_causal", "size=small") == plain
    large = loaded("patches_causal", "size=large")
    assert (large.network.width, large.trainer.max_steps) == (192, 28_000)
    assert loaded("bsds16_causal", "size=large").network == large.network  # its parent's sizes
    assert loaded("patches_causal", "network.width=8", "size=large").network.width == 8
    with pytest.raises(ConfigError, match=r"size=huge is no size of this experiment; there are: tiny, "):
        loaded("patches_causal", "size=huge")
    with pytest.raises(ConfigError, match=r"it has none; the images' side is data\.size"):
        loaded("patches_dual", "size=16")
    with pytest.raises(ConfigError, match="size is given 2 times"):
        loaded("patches_causal", "size=tiny", "size=large")
    with pytest.raises(ConfigError, match="a run keeps the size it was trained with"):
        override_config(to_plain(plain), ["size=tiny"], "run")


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ("sizes: [a, b]", "sizes: must be names"),
        ("sizes: {big: {netwrok: {width: 3}}}", "netwrok: unknown key"),
        ("sizes: {big: {name: other}}", "sizes: big: must hold settings"),
        ("sizes: {big: 3}", "must hold settings"),
    ],
)  # fmt: skip
def test_sizes_are_looked_at_whole_whether_one_is_taken_or_not(tmp_path: Path, sizes: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"# Mine\n{sizes}\ndata: {{path: x, dataset: demo, size: 16}}\n")
    with pytest.raises(ConfigError, match=said):
        load_experiment("mine", [], tmp_path)


def test_a_childs_own_settings_come_after_its_parents_size(tmp_path: Path) -> None:
    parent = "# P\nsizes: {big: {network: {width: 9}, trainer: {max_steps: 9}}, 16: }\n"
    (tmp_path / "p.yaml").write_text(f"{parent}data: {{path: x, dataset: demo, size: 16}}\n")
    (tmp_path / "c.yaml").write_text("# C\nparent: p\ntrainer: {max_steps: 7}\noptim: {warmup_steps: 0}\n")
    found = load_experiment("c", ["size=big"], tmp_path)
    assert (found.network.width, found.trainer.max_steps) == (9, 7)
    assert load_experiment("c", ["size=16"], tmp_path) == load_experiment("c", [], tmp_path)

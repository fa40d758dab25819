"""Studies: what they refuse, the paper's recipe in each, restarts, and what the table says."""

import json
import math
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dualscore.runs.folder import Run
from dualscore.settings.experiment import available, load_experiment, to_plain
from dualscore.study import run_variants
from dualscore.study.findings import Result, plot_differences, read_result, table, time_to
from dualscore.study.run_variants import steps_of
from dualscore.study.variants import PAPER, SIZE_KEYS, Study, Variant, load_study, paper_settings
from workspace import ROOT, TINY, Workspace

GOOD = {
    "experiment": "patches_dual",
    "steps": 4,
    "measurements": 2,
    "variants": {"recipe": [], "slow": ["optim.lr=1e-4"]},
}


def declare(folder: Path, **changes: object) -> Path:
    """Write a study that differs from a good one."""
    content = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
    (folder / "studies").mkdir(exist_ok=True)
    path = folder / "studies" / "mine.yaml"
    path.write_text("# What is found out\n" + yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.parametrize(
    "name", [n for n in available(ROOT / "experiments") if "imagenet" in n or "patches" in n]
)
def test_the_papers_settings_turn_any_experiment_into_the_papers(name: str) -> None:
    folder = ROOT / "experiments"
    base = load_experiment(name, [], folder)
    if base.model.value == "denoiser":
        pytest.skip("has no energy")
    mine = to_plain(load_experiment(name, paper_settings(base), folder))
    paper = to_plain(load_experiment("imagenet64_dual", [], folder))
    for part in ("energy", "noise", "objective", "optim", "network"):
        for key in paper[part]:
            if f"{part}.{key}" not in SIZE_KEYS:
                assert mine[part][key] == paper[part][key], (part, key)
    assert not mine["data"]["dequantize"]
    assert mine["network"]["width"] == base.network.width


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": 3}, "budget: unknown key"),
        ({"experiment": None}, "experiment: must be a name"),
        ({"seconds": 3}, "seconds: give either seconds or steps"),
        ({"steps": None}, "seconds: give either seconds or steps"),
        ({"steps": 5}, "steps: 5 must be a multiple of 2 measurements"),
        ({"seeds": [1, 1]}, "seeds: must be a list of different numbers"),
        ({"seeds": 3}, "seeds: must be a list"),
        ({"measurements": 0}, "measurements: must be a number > 0"),
        ({"measurements": 0.5}, "measurements: must be a whole number"),
        (
            {"settings": ["evaluate.estimators=[bound]"]},
            "variants.recipe: a study compares the bound and the paper's",
        ),
        ({"variants": {}}, "variants: must name at least one"),
        ({"variants": {"paper": []}}, "variants.paper: not a name"),
        ({"variants": {"a/b": []}}, "variants.a/b: not a name"),
        ({"variants": {"a b": [], "a-b": []}}, "two names differ only in signs"),
        ({"variants": {"a": ["optim.lr"]}}, "variants.a: must be a list of settings"),
        ({"variants": {"a": ["optim.rl=1"]}}, "variants.a: override 'optim.rl=1': optim.rl: unknown key"),
        ({"variants": {"a": [], "b": {"experiment": "cifar10_dual"}}}, "all must have the same data"),
        ({"settings": "optim.lr=1"}, "settings: must be a list of settings"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(
    workspace: Workspace, changes: dict[str, object], said: str
) -> None:
    declare(workspace.folder, **changes)
    line = workspace.fail("study", "mine")
    assert "studies/mine.yaml: " in line
    assert said in line


def test_an_unknown_study_is_answered_with_those_there_are(workspace: Workspace) -> None:
    declare(workspace.folder)
    assert "'theirs' does not exist; there are: mine" in workspace.fail("study", "theirs")


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_study_can_be_read_and_holds_the_paper(path: Path) -> None:
    study = load_study(path.stem, ROOT / "studies", ROOT / "experiments")
    assert [v.name for v in study.variants].count(PAPER) == 1
    assert study.purpose


def test_equal_seconds_give_whole_measurements() -> None:
    study = Study("a", "", [0], 10.0, None, 4, [])
    assert steps_of(study, 0.1) == 100
    assert steps_of(study, 0.3) == 32  # 33.3 steps, a multiple of 4
    assert steps_of(study, 100.0) == 4


def result(variant: str, seed: int, bound: float, paper: float, dequantized: float) -> Result:
    """A finished run whose bound falls from 9 to its end."""
    final = {"bound": bound, "paper": paper, "dequantized": dequantized}
    gap = dequantized - bound
    return Result(variant, seed, 0.5, [10, 20], [9.0, bound], [9.0, paper], final, gap, "consistent", "")


def test_the_table_gives_means_spreads_and_paired_differences() -> None:
    study = Study("s", "p", [0, 1, 2], None, 20, 2, [Variant(n, "e", []) for n in ("best", "worse", PAPER)])
    best, worse = [4.0, 4.2, 4.7], [4.3, 4.6, 4.9]
    results = [result("best", s, b, b + 0.2, b + 0.1) for s, b in enumerate(best)]
    results += [result("worse", s, b, b, b) for s, b in enumerate(worse)]
    results += [result(PAPER, 0, 9.0, 14.0, 14.0)]
    results += [Result(PAPER, 1, 0.5, [10], [12.0], [15.0], {}, None, "", "step 12: the loss is not finite")]
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in table(study, results).splitlines()
            if line.startswith("| ")}  # fmt: skip
    cells = {name: [cell.strip() for cell in row] for name, row in rows.items()}
    differences = [w - b for w, b in zip(worse, best, strict=True)]
    assert cells["worse"] == [
        "500", "20", f"{statistics.fmean(worse):.3f} ± {statistics.stdev(worse):.3f}",
        f"{statistics.fmean(worse):.3f} ± {statistics.stdev(worse):.3f}", "+0.000 ± 0.000",
        f"{statistics.fmean(differences):+.3f} ± {statistics.stdev(differences) / math.sqrt(3):.3f}",
        f"{statistics.fmean(differences) - 0.1:+.3f} ± {statistics.stdev(differences) / math.sqrt(3):.3f}",
    ]  # fmt: skip
    assert cells["best"][4] == "+0.100 ± 0.000"
    assert cells[PAPER][2] == "9.000 (1 of 2 diverged)"
    assert "best: after 5.0 s, 1/2 of the time (its first measurement)" in table(study, results)
    assert time_to(4.31, results[:3]) == 10.0
    assert time_to(1.0, results) is None


def test_with_one_measurement_differences_are_drawn_instead_of_curves() -> None:
    study = Study("s", "p", [0, 1], None, 20, 1, [Variant(n, "e", []) for n in ("best", "worse", PAPER)])
    results = [
        result(n, s, b, b, b) for n, b in (("best", 4.0), ("worse", 4.5), (PAPER, 9.0)) for s in (0, 1)
    ]
    figure = plot_differences(study, results)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["worse", PAPER]
    marks = {line.get_label(): list(line.get_xdata()) for line in axes.get_lines()}
    assert any(found == pytest.approx([0.5, 5.0]) for found in marks.values() if len(found) == 2 and found[0])
    assert "First measured there" not in table(study, results)


@pytest.mark.usefixtures("forks")
def test_a_study_runs_and_goes_on(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*TINY, "evaluate.estimators=[paper,dequantized,bound]", f"data.path={demo_shards}",
                "optim.warmup_steps=0", "evaluate.images=16", "evaluate.subset_images=16"]  # fmt: skip
    variants = {"recipe": [], "explodes": ["optim.lr=1e9", "optim.schedule=halving"]}
    declare(workspace.folder, settings=settings, variants=variants)
    printed = workspace.run("study", "mine")
    out = workspace.folder / "studies" / "mine"
    assert "| recipe |" in printed
    assert "1 of 1 diverged" in printed
    assert (out / "learning.png").stat().st_size > 10_000
    numbers = json.loads((out / "results.json").read_text())["runs"]
    assert [run["variant"] for run in numbers] == ["recipe", "explodes", PAPER]
    assert [run["steps"] for run in numbers if run["variant"] != "explodes"] == [[2, 4], [2, 4]]
    evaluation = json.loads((out / "runs" / "recipe-seed0" / "evaluation.json").read_text())
    assert numbers[0]["final"]["bound"] == evaluation["bits_per_dim"]["bound"]["value"]
    assert numbers[0]["gap"] == -evaluation["differences"]["bound − dequantized"]["value"]
    # Older reports had it among their checks.
    old = {**evaluation, "checks": [{"check": "bound − dequantized", "value": -0.25}]}
    del old["differences"]
    (out / "old").mkdir()
    (out / "old/evaluation.json").write_text(json.dumps(old))
    read = read_result(Run(out / "old"), "recipe", 0, 1.0, out / "old/none")
    assert read is not None
    assert read.gap == 0.25
    # The paper's row was the paper's.
    config = yaml.safe_load((out / "runs" / "paper-seed0" / "config.yaml").read_text())
    assert config["energy"]["anchor"] == "none"
    assert config["network"]["width"] == 4

    def written() -> dict[str, int]:
        return {p.parts[-3]: p.stat().st_mtime_ns for p in out.glob("runs/*/checkpoints/last.ckpt")}

    before = written()
    (out / "runs" / "paper-seed0" / "checkpoints" / "last.ckpt").unlink()
    workspace.run("study", "mine")
    after = written()
    assert [run for run in after if after[run] != before[run]] == ["paper-seed0"]
    assert json.loads((out / "results.json").read_text())["runs"] == numbers
    # Figures of other settings are not passed off as the study's.
    declare(workspace.folder, settings=[*settings, "optim.lr=1e-5"], variants=variants)
    line = workspace.fail("study", "mine")
    assert "recipe-seed0: was run with optim.lr=" in line
    assert "the study now says 1e-05; remove that folder" in line


def test_a_step_is_timed_without_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((100.0, 100.0 + 2.0 * run_variants.STEPS))
    monkeypatch.setattr(run_variants.time, "perf_counter", lambda: next(clock))
    stopwatch = run_variants._Stopwatch()
    for step in range(1, run_variants.WARM_UP + run_variants.STEPS + 1):
        stopwatch.after_step(SimpleNamespace(global_step=step), None)  # type: ignore[arg-type]
    assert stopwatch.seconds == 2.0

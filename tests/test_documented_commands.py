"""Every command that a page gives is understood by make and the programs, and executed, here or elsewhere."""

import argparse
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import cli as preparing
from data_prep import examples
from data_prep.examples import write_examples
from documented_commands import Documented, check, expand, find, option_names, pages, parsers, setting_names
from dualscore import cli
from dualscore.errors import DualscoreError
from fakes import write_official_imagenet
from workspace import ROOT, TINY

PROGRAMS = {"dualscore": cli.main, "data_prep": preparing.main, "data_prep.examples": examples.main}
COMMAND_NAMES = {
    name
    for parser in parsers()
    for action in parser._actions
    if isinstance(action, argparse._SubParsersAction)
    for name in action.choices
}
COMMANDS = list(dict.fromkeys(command for page in pages() for command in find(page)))
ELSEWHERE = {
    r"make (install|lint|test[a-z-]*|help|screenshots)\b": ".ci/run",
    r"make (data|lock|verify-data|score|sample|denoise|inpaint)$": "named in the text, not typed",
    r".*(…|/NAME)": "to be filled in",
    r"make (newcomer|tensorboard|experiments|status)\b": "test_newcomer.py",
    r"make torture": "test_torture.py",
    r"make faults": "test_campaign.py",
    r"make (compress|decompress)": "test_compression.py: minutes",
    r"make noise": "test_noise_level.py",
    r"make evaluate .*file": "test_coding.py, test_yardsticks.py",
    r"make bench": "test_benchmarks.py",
    r"make gpu-report": "test_gpu_report.py",
    r"make study": "test_study.py, on a smaller one: hours",
    r"make submit": "test_cluster.py, test_slurm.py; with DRY=1 here",
    r"make figures": "test_figures.py; of the demo's run here",
    r"make (convert|train EXP=(?!patches_dual))": "test_model_files.py, test_training.py: every experiment",
    r"make train$": "make newcomer: the whole of it",
    r"make .*(imagenet|cifar10|bsds500|https?:|EXP=some)": "needs others' files; test_remote.py, data_prep/",
    r"make data DATASET=photographs": "needs Debian's packages; test_wallpapers.py",
    r"dualscore ": "what the line of make above it runs",
    r"python benchmarks/": "test_benchmarks.py, test_ood.py, test_pictures.py",
    r"python -m benchmarks\.box_models": "test_wallpapers.py: what it leaves",
    r"\.venv/bin/jupyter": "test_notebooks.py",
    r"(printf|sbatch|scancel|scontrol) ": "test_newcomer.py, test_slurm.py",
}
"""What is not executed here, and what executes it."""


@pytest.fixture(scope="module")
def typed_at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that make takes for the project's, with an environment."""
    folder = tmp_path_factory.mktemp("typed")
    for name in ("requirements.lock", "pyproject.toml", "setup.py", "studies", "sweeps"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    wide = "# The demo, a wider network\nparent: patches_dual\nnetwork: {width: 32}\n"
    (folder / "experiments/patches_wide.yaml").write_text(wide)
    (folder / "venv").mkdir()
    (folder / "venv/.installed").touch()
    return folder


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_is_understood(page: Path, typed_at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(typed_at)
    understand(page, typed_at)


def understand(page: Path, typed_at: Path) -> None:
    """Hold every command of a page against make and the programs; names all that are wrong."""
    wrong = []
    for command in find(page):
        try:
            for line in expand(command.text, typed_at):
                check(line)
        except (AssertionError, DualscoreError) as error:
            wrong.append(f"{command}: {error}")
    assert not wrong, "\n".join(wrong)


def test_commands_are_found() -> None:
    """On every page that gives any; and nothing is excused that no page has."""
    assert len(COMMANDS) > 100
    assert len(find(ROOT / "README.md")) > 25
    for pattern in ELSEWHERE:
        assert any(re.match(pattern, command.text) for command in COMMANDS), pattern


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("    make score CKPT=runs/patches_dual IMAGES=a.png [BRIGHT=1]\n", "BRIGHT=… changes nothing"),
        ("    make paint\n", "make refuses it"),
        ("    dualscore score MODEL IMAGES [--no-map]\n    dualscore score M I [--bright]\n", "--bright"),
        ('So `make train SET="optim.speed=2"` is typed.\n', "optim.speed"),
        ("    python -m data_prep build demo --out x --sise 3\n", "sise"),
        ("    make study STUDY=nothing\n", "nothing"),
    ],
)
def test_what_is_made_up_is_found(
    page: str, reason: str, typed_at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(typed_at)
    monkeypatch.setattr("documented_commands.ROOT", tmp_path)
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    (tmp_path / "page.md").write_text(page)
    with pytest.raises(AssertionError, match=reason):
        understand(tmp_path / "page.md", typed_at)


@pytest.mark.parametrize(
    "page", [p for p in pages() if p.suffix == ".md"], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_options_and_settings_named_in_the_text_exist(page: Path) -> None:
    code = re.findall(r"`([^`\n]+)`", page.read_text())
    foreign = {
        "--nodes",
        "--array",
        "--account",
        "--constraint",
        "--signal",
        "--output",
        "--strict",
        "--help",
        "--version",
    }
    options = {option for text in code for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)}
    assert options - foreign - option_names() == set()
    rooms = "data|network|energy|noise|objective|optim|trainer|evaluate"
    named = {n for text in code for n in re.findall(rf"(?<![\w./])(?:{rooms})\.[a-z_]+(?![\w.(/])", text)}
    assert {n for n in named if not n.endswith((".py", ".md"))} - setting_names() - {"data.u8"} == set()


class Typist:
    """Types commands in a folder of its own, made small: tiny networks, few steps, no queue."""

    def __init__(self, folder: Path, official: Path) -> None:
        self.folder, self.official = folder, official

    def type(self, command: Documented) -> bool:
        """Whether it was executed; it must then succeed."""
        if re.search("…|/NAME", command.text):
            return False
        lines = expand(command.text, self.folder)
        small = [self._small(line) for line in lines]
        if not small or any(line is None for line in small):
            return False
        for line in small:
            assert line is not None
            assert PROGRAMS[line[1]](line[2:]) == 0, f"{command}: {line}"
        return True

    def _small(self, line: list[str]) -> list[str] | None:
        """The same with small settings; None where another test, or nobody, can do it."""
        if line[0] != "-m" or line[1] not in PROGRAMS:
            return None
        if line[1] == "data_prep.examples":
            return line
        command = next(i for i, word in enumerate(line) if word in COMMAND_NAMES)
        if line[1] == "data_prep":
            return self._small_data(line, *line[command : command + 2])
        match line[command], line[command + 1 :]:
            case "train", ["patches_dual", *_]:
                if any("http" in word or "pipe:" in word for word in line):
                    return None
                few = ["trainer.max_steps=2", "trainer.validate_every=2", "optim.warmup_steps=0"]
                return [*line, *TINY, *few]
            case "evaluate", ["patches_dual", *rest]:
                return [*line, *TINY, *(word for word in rest if word.startswith("evaluate."))]
            case "figures", ["runs/patches_dual" | "energies.npy", *_]:
                return line
            case "denoise", _ if "--mean" in line:
                return line
            case "sample" | "denoise" | "inpaint", _:
                return [*line, "--steps", "3", "--count", "2"]
            case "submit", _:
                ready = any(word.startswith("--dry") for word in line) and "imagenet" not in " ".join(line)
                return line if ready else None
            case "measure", _:
                return [*line, "--strata", "2", "--workers", "0"]
            case "score" | "ood" | "export" | "status" | "experiments", _:
                return line
        return None

    def _small_data(self, line: list[str], command: str, dataset: str) -> list[str] | None:
        if command == "build":
            if dataset not in {"demo", "folder", "imagenet64"}:
                return None
            shutil.rmtree(self.folder / line[line.index("--out") + 1], ignore_errors=True)
            if dataset == "imagenet64":
                line[line.index("--src") + 1] = str(self.official)
        return [*line, "--workers", "1"]


@pytest.fixture
def typist(
    typed_at: Path,
    trained_demo: Path,
    demo_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Typist:
    """In a folder with a trained demo, and with the pictures that pages name."""
    monkeypatch.chdir(typed_at)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(trained_demo / "runs", typed_at / "runs")
    (typed_at / "data").mkdir()
    (typed_at / "data/demo16").symlink_to(demo_shards)
    write_examples(typed_at / "examples", 16)
    for name in ("folder", "photographs", "textures", "scans"):
        kind = "patches" if name in {"folder", "photographs"} else "textures"
        shutil.copytree(typed_at / "examples" / kind, typed_at / name)
    shutil.copytree(typed_at / "examples/photographs", tmp_path / "photographs")
    patch = Image.open(typed_at / "examples/patches/chelsea/00000.png")
    patch.save(typed_at / "photo.png")
    Image.open(typed_at / "examples/photographs/chelsea.png").save(typed_at / "photo.jpg")
    draw = np.random.default_rng(0)
    noisy = np.asarray(patch.convert("L")) + draw.normal(0, 25, (16, 16))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(typed_at / "noisy.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[4:8] = 255
    Image.fromarray(mask).save(typed_at / "mask.png")
    np.save(typed_at / "energies.npy", draw.gumbel(-1e4, 1e3, 200))
    (typed_at / "some").mkdir()
    shutil.copy(typed_at / "runs/patches_dual/checkpoints/best.ckpt", typed_at / "some/file.ckpt")
    write_official_imagenet(tmp_path / "official", 64, train_images=400, val_images=20)
    return Typist(typed_at, tmp_path / "official")


@pytest.mark.long
def test_commands_run_in_the_order_of_the_pages(typist: Typist) -> None:
    """Each once; those that do not are executed elsewhere, and the list says where."""
    done: dict[str, bool] = {}
    for command in COMMANDS:
        if command.text not in done:
            done[command.text] = typist.type(command)
    left = [text for text, ran in done.items() if not ran]
    unexplained = [text for text in left if not any(re.match(pattern, text) for pattern in ELSEWHERE)]
    assert not unexplained, "\n".join(unexplained)
    assert sum(done.values()) > 30
    assert (typist.folder / "scores/scores.csv").is_file()
    assert os.path.isdir(typist.folder / "model")

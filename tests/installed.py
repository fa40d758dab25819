"""What somebody has who has only the wheel: builds it, installs it apart from the source tree, and uses it.

Run as a script (make test-wheel), it takes every dependency from the network; tests/test_packaging.py lends
those of its own environment.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHIPPED = ("experiments", "studies", "sweeps")
TINY = """
    network.width=4 data.batch_size=16 trainer.accelerator=cpu trainer.max_steps=2 trainer.validate_every=2
    trainer.validate_images=32 optim.warmup_steps=0 evaluate.estimators=[paper] evaluate.images=64
    evaluate.train_images=32 evaluate.batch_size=32 evaluate.subset_images=32 evaluate.yardsticks=[stationary]
"""


def copy_source(folder: Path) -> Path:
    """Copy what git knows or could add, without .git; of an unpacked archive all but what is made."""
    if not (ROOT / ".git").exists():
        made = {".venv", "runs", "data", "build", "dist"}
        caches = shutil.ignore_patterns("*.egg-info", "__pycache__", ".*_cache")

        def ignore(at: str, names: list[str]) -> set[str]:
            return caches(at, names) | (made & set(names) if Path(at) == ROOT else set())

        return Path(shutil.copytree(ROOT, folder, ignore=ignore))
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def build(source: Path, out: Path, *kinds: str) -> Path:
    """Build what `kinds` say, --wheel or --sdist, with what this environment has for it; the file."""
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (made,) = out.iterdir()
    return made


class Installation:
    """An environment with the wheel in it, and a folder to use it in."""

    def __init__(self, folder: Path) -> None:
        self.prefix, self.work = folder / "environment", folder / "work"
        self.work.mkdir()
        # What would lead to the source tree, or to another run, is not handed on.
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DUALSCORE"))}
        self.environ["PATH"] = f"{self.prefix / 'bin'}{os.pathsep}{self.environ['PATH']}"

    def lend(self, wheel: Path) -> None:
        """Install the wheel alone, and let it see the libraries of the environment that runs this."""
        venv.create(self.prefix, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", str(self.prefix / "bin" / "python"), "install"]
        options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--ignore-installed"]
        subprocess.run([*pip, *options, str(wheel)], check=True, env=self.environ)
        (inside,) = self.prefix.glob("lib/python*/site-packages")
        paths = sysconfig.get_paths()
        # A folder in a .pth is searched last, and the .pth files in it, editable installs, count for nothing.
        (inside / "lent.pth").write_text("\n".join(dict.fromkeys((paths["purelib"], paths["platlib"]))))

    def fetch(self, wheel: Path, torch: str) -> None:
        """Install the wheel with all its dependencies."""
        venv.create(self.prefix, with_pip=True)
        pip = [str(self.prefix / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        pinned = [f"torch=={torch}", f"{wheel}[data]"]
        subprocess.run([*pip, "--disable-pip-version-check", *pinned], check=True, env=self.environ)

    def call(self, *command: str, status: int = 0, **environment: str) -> str:
        """Run a command in the folder; what it printed. It must end with `status`."""
        known = self.environ | environment
        process = subprocess.run(
            command, cwd=self.work, env=known, capture_output=True, text=True, check=False, timeout=300
        )
        assert process.returncode == status, f"{command}: {process.returncode}\n{process.stderr}"
        return process.stdout + process.stderr


def use(installed: Installation, version: str) -> None:
    """Go the whole way of a newcomer: from the version to scores of images."""
    call = installed.call
    code = "import data_prep, dualscore; print(data_prep.__file__, dualscore.__file__)"
    places = call("python", "-c", code)
    for place in places.split():
        assert Path(place).is_relative_to(installed.prefix), place
    assert call("dualscore", "--version").startswith(f"dualscore {version} (torch ")
    listed = call("dualscore", "experiments").splitlines()
    for path in (ROOT / "experiments").glob("*.yaml"):
        assert path.stem in listed
    assert "there are: generalization" in call("dualscore", "submit", "none", "--sweep", status=1)
    assert "demo, long" in call("dualscore", "study", "none", status=1)

    # Without data, a run says with which command it is made.
    message = call("dualscore", "train", "patches_dual", status=1)
    found = re.search(r"make it with: \S*(dualscore data build .*)", message)
    assert found is not None, message
    call(*found[1].split())
    assert "is right" in call("dualscore", "data", "verify", "data/demo16")

    # An experiment of one's own comes first, with a shipped one as its base.
    (installed.work / "experiments").mkdir()
    own = "# Patches of my own\nparent: patches_dual\ntrainer: {log_every: 1}\n"
    (installed.work / "experiments" / "mine.yaml").write_text(own)
    assert [line.strip() for line in call("dualscore", "experiments").splitlines()[:2]] == [
        "mine",
        "Patches of my own",
    ]
    call("dualscore", "train", "mine", *TINY.split())
    assert "mine" in call("dualscore", "status")
    image = "from PIL import Image; Image.effect_noise((16, 16), 40).save('noise.png')"
    call("python", "-c", image)
    assert "noise.png" in call("dualscore", "score", "runs/mine", "noise.png")


def run_into(installed: Installation) -> None:
    """Meet with the run `mine` what people run into: a few of the cases of tests/run_into."""
    call = installed.call
    train = ["dualscore", "train", "mine", "--name", "other", *TINY.split()]
    assert "LOCAL_RANK=1 is set in the environment, but " in call(*train, status=1, LOCAL_RANK="1")
    assert "seed=010" in call(*train, "seed=010", status=1)
    assert not (installed.work / "runs/other").exists()
    plain = {"PYTHONIOENCODING": "ascii", "COLUMNS": "0", "MPLBACKEND": "none"}
    assert call(*train, **plain).isascii()
    assert "other" in call("dualscore", "status", **plain, SLURM_PROCID="1", LOCAL_RANK="1")

    # Good pictures among what cannot be read, by processes.
    album = installed.work / "album"
    album.mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(installed.work / "noise.png", album / name)
    os.mkfifo(album / "pipe.jpg")
    (album / "loop.png").symlink_to("loop.png")
    (album / "cut.jpg").write_bytes(b"\xff\xd8")
    (album / "notes.txt").write_text("no picture")
    long = installed.work / ("x" * 90)
    long.mkdir()
    said = call("dualscore", "score", "runs/mine", "album", "--workers", "1", TMPDIR=str(long), **plain)
    assert "2 images" in said
    assert "3 left out" in said
    assert "passed over: 1 file that is no picture by name (.txt)" in said
    few = ["bash", "-c", "ulimit -n 24 && dualscore score runs/mine album --workers 2"]
    assert "the limit is 24: raise it (ulimit -n" in call(*few, status=1)


def main() -> None:
    """Build, install from the network and use; how long each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    locked = re.search(r"^torch==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    parser.add_argument("--torch", default=locked[1], help="its version (default: %(default)s, the lock's)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times = [time.monotonic()]
        wheel = build(copy_source(Path(folder, "source")), Path(folder, "dist"), "--wheel")
        times.append(time.monotonic())
        installed = Installation(Path(folder))
        installed.fetch(wheel, arguments.torch)
        times.append(time.monotonic())
        use(installed, wheel.name.split("-")[1])
        run_into(installed)
        times.append(time.monotonic())
        print(installed.call("dualscore", "--version"), end="")
    built, fetched, used = (after - before for before, after in pairwise(times))
    print(f"built in {built:.0f} s, installed in {fetched:.0f} s, used in {used:.0f} s")


if __name__ == "__main__":
    main()

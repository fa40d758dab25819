"""Walks through the README as somebody who has just cloned the project, with its own commands and no others.

    make newcomer                              # an environment of its own, the whole training
    python tests/newcomer.py --look            # this environment, the README's short look: what a test does

Every command is taken from README.md of the clone, and none that does not stand there is run. Outcomes are
looked at, not exit statuses alone. Needs nothing but Python itself.
"""

import argparse
import csv
import json
import math
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE = 120.0
"""Seconds that dashboards may take to answer, on a busy machine."""


class WalkError(Exception):
    """A step did not end as the README says."""


def commands(page: str) -> list[str]:
    """The shell commands in a page's code blocks, without their comments and what is printed after them."""
    lines = re.findall(r"^ {4}(\S.*)$", page, re.MULTILINE)
    return [line for line in (re.sub(r"\s+#( .*)?$", "", line) for line in lines) if _is_command(line)]


def _is_command(line: str) -> bool:
    return line.split()[0] in {"make", "printf", "cp", "python", "dualscore"}


class Walk:
    """A clone and its README.

    Args:
        clone: the folder.
        environment: variables for every command.
    """

    def __init__(self, clone: Path, environment: dict[str, str]) -> None:
        self.clone, self.environment = clone, environment
        self.commands = commands((clone / "README.md").read_text(encoding="utf-8"))
        self.began = time.monotonic()

    def take(self, start: str) -> str:
        """The one command of the README that begins so (or is so)."""
        found = [c for c in self.commands if c == start] or [c for c in self.commands if c.startswith(start)]
        if len(set(found)) != 1:
            raise WalkError(f"README.md has {len(set(found))} commands that begin with: {start}")
        return found[0]

    def run(self, start: str) -> str:
        """Run it as it stands; returns what it printed."""
        command, began = self.take(start), time.monotonic()
        print(f"$ {command}", flush=True)
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.clone,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise WalkError(f"{command}\n{done.stdout[-3000:]}\nended with status {done.returncode}")
        print(f"  {time.monotonic() - began:.0f} s", flush=True)
        return done.stdout

    def expect(self, what: str, holds: object) -> None:
        """Say what was seen, or fail."""
        if not holds:
            raise WalkError(f"not as the README says: {what}")
        print(f"  {what}", flush=True)


def walk(clone: Path, environment: dict[str, str], *, look: bool) -> None:
    """From a fresh clone to a trained run, dashboards, scores, a changed experiment, and a job.

    Args:
        clone: the folder.
        environment: variables for every command.
        look: train the README's short look instead of the demo; it stands in for the demo's run.
    """
    steps = Walk(clone, environment)
    runs = clone / "runs"
    printed = steps.run("make train NAME=look" if look else "make train")
    steps.expect("the table of likelihoods is printed", "paper's protocol" in printed)
    bound = re.search(r"^ *bound +\d\.\d{3} ± ", printed, re.MULTILINE)
    steps.expect("and the upper bound is in it", bound is not None)
    if look:
        (runs / "patches_dual").symlink_to("look")
    run = runs / "patches_dual"
    report = json.loads((run / "evaluation.json").read_text())
    steps.expect("evaluation.json is complete", report["complete"])
    bits = report["bits_per_dim"]["paper"]["value"]
    steps.expect(f"{bits:.3f} bits/dim by the paper's protocol", 0 < bits < (20 if look else 5.0))
    steps.expect("best.ckpt is there", (run / "checkpoints" / "best.ckpt").is_file())
    steps.expect("make status lists the run", run.resolve().name in steps.run("make status"))
    _dashboards(steps, run.resolve().name)
    _scores(steps)
    steps.run("printf")
    steps.expect("the new experiment is listed", "patches_wide" in steps.run("make experiments"))
    script = steps.run("make submit EXP=patches_wide")
    steps.expect("a batch script is printed", "#!/bin/bash" in script and "#SBATCH" in script)
    steps.expect("it is of the new experiment", "experiment=patches_wide" in script.replace("'", ""))
    steps.expect("and nothing was submitted", not (runs / "patches_wide").exists())
    print(f"walked in {time.monotonic() - steps.began:.0f} s", flush=True)


def _dashboards(steps: Walk, run: str) -> None:
    """TensorBoard answers, and knows the run."""
    command = steps.take("make tensorboard")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    print(f"$ {command}", flush=True)
    began = time.monotonic()
    server = subprocess.Popen(
        ["bash", "-c", command],
        cwd=steps.clone,
        env=steps.environment | {"PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        known: list[str] = []
        while not any(run in name for name in known) and time.monotonic() - began < PATIENCE:
            if server.poll() is not None:
                raise WalkError(f"{command}: ended with status {server.returncode}")
            time.sleep(0.5)
            try:
                page = urllib.request.urlopen(f"http://localhost:{port}/", timeout=10)
                known = json.load(urllib.request.urlopen(f"http://localhost:{port}/data/runs", timeout=10))
            except OSError:
                continue
        steps.expect(f"TensorBoard lists the run, {known}", any(run in name for name in known))
        steps.expect("and its page is there (HTTP 200)", page.status == 200)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    print(f"  {time.monotonic() - began:.0f} s", flush=True)


def _scores(steps: Walk) -> None:
    """A photograph of one's own is scored: the one that matplotlib brings."""
    printed = steps.run("make examples")
    patch = steps.clone / "examples/patches/chelsea/00000.png"
    steps.expect("example pictures are written", patch.is_file())
    steps.expect("and named", "examples/photographs" in printed)
    python = Path(steps.environment.get("VENV", ".venv"), "bin", "python")
    find = [str(steps.clone / python), "-c", "import matplotlib; print(matplotlib.get_data_path())"]
    data = subprocess.check_output(find, text=True, env=steps.environment).strip()
    shutil.copy(Path(data, "sample_data", "grace_hopper.jpg"), steps.clone / "photo.jpg")
    command = steps.take("make score CKPT=runs/patches_dual IMAGES=photo.jpg")
    steps.run(command)
    out = steps.clone / re.findall(r"OUT=(\S+)", command)[0]
    with (out / "scores.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    bits, percentile = float(row["bits_per_dim"]), float(row["percentile"])
    steps.expect(f"scores.csv has {row['file']}", row["file"] == "photo.jpg")
    steps.expect(f"{bits:.2f} bits/dim, percentile {percentile:.0f}", math.isfinite(bits + percentile))
    steps.expect("and a heat map", (out / row["map"]).is_file() and (out / "sheet.png").is_file())
    command = steps.take("make score IMAGES=photo.jpg")
    printed, out = steps.run(command), steps.clone / re.findall(r"OUT=(\S+)", command)[0]
    steps.expect("the whole photograph is scored as it is", "bytes would hold these" in printed)
    steps.expect("with its map", any((out / "maps").iterdir()))


def borrowed_environment(folder: Path) -> Path:
    """A folder that make takes for the clone's environment, and that runs this very Python.

    Its packages are this one's; dualscore itself is the clone's, by PYTHONPATH.
    """
    (folder / "bin").mkdir(parents=True)
    for tool in Path(sys.executable).parent.iterdir():
        if not tool.name.startswith("python"):
            (folder / "bin" / tool.name).symlink_to(tool)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (folder / ".installed").touch()
    return folder


def fresh_clone(folder: Path) -> Path:
    """What is committed, as anybody gets it."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder)], check=True)
    return folder


def variables(clone: Path, borrowed: Path | None) -> dict[str, str]:
    """The variables of a new shell: nothing of an environment from before but the one that is borrowed."""
    strange = {
        "VIRTUAL_ENV",
        "VENV",
        "PYTHONPATH",
        "PYTHONHOME",
        "EXP",
        "SET",
        "NAME",
        "MAKEFLAGS",
        "MAKELEVEL",
    }
    kept = {name: value for name, value in os.environ.items() if name not in strange}
    if borrowed is not None:
        kept |= {"VENV": str(borrowed), "PYTHONPATH": f"{clone / 'src'}{os.pathsep}{clone}"}
    return kept


def main() -> int:
    """Clone, and walk."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--look", action="store_true", help="this environment, and the short look")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="newcomer-") as folder:
        clone = fresh_clone(Path(folder, "dualscore"))
        borrowed = borrowed_environment(Path(folder, "venv")) if arguments.look else None
        try:
            walk(clone, variables(clone, borrowed), look=arguments.look)
        except WalkError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

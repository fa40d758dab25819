"""Kills a small run at random moments and looks whether anything is lost.

    make torture [KILLS=100] [SEED=0]

A run is killed with SIGKILL, started again by the same command, killed again, until it is complete; then
another one, until there were enough kills. Every run must end with the weights of one that was never
interrupted, bit for bit, after the same images in the same order; every checkpoint must be readable after
every kill. The report says in what the kills fell.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from data_prep.cli import main as prepare
from dualscore.errors import CheckpointError
from dualscore.runs.checkpoints import read_checkpoint
from dualscore.runs.folder import Run
from dualscore.settings.experiment import load_experiment
from dualscore.train_experiment import train
from fakes import write_official_imagenet
from workspace import ROOT, TINY

IMAGES, BATCH, STEPS, SAVE_EVERY = 96, 16, 90, 3
SETTINGS = [
    *TINY,
    "network.scales=1",
    "network.layers=2",
    f"data.batch_size={BATCH}",
    "data.shuffle_buffer=32",
    "data.workers=1",
    "optim.ema_steps=3",
    f"trainer.max_steps={STEPS}",
    f"trainer.validate_every={SAVE_EVERY}",
    "trainer.validate_images=16",
]


class Journal(Callback):
    """Writes down what a run does, in a file that outlives it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.write("")  # ends a line that was cut off

    def write(self, what: str, **more: Any) -> None:
        """One line."""
        os.write(self._file, (json.dumps({"what": what} | more) + "\n").encode())

    def on_train_batch_start(self, trainer: lightning.Trainer, _: object, batch: Any, __: int) -> None:
        """The images of a step."""
        self.write("training", step=trainer.global_step, images=batch.position.tolist())

    def on_validation_start(self, *_: object) -> None:
        """A validation begins."""
        self.write("validating")

    def on_save_checkpoint(self, *_: object) -> None:
        """A checkpoint is about to be written."""
        self.write("saving")

    def on_train_end(self, *_: object) -> None:
        """Only the evaluation is left."""
        self.write("evaluating")


def read(journal: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal."""
    for line in journal.read_text().splitlines() if journal.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def go(folder: str, data: str) -> None:
    """Train in a folder, or go on there; in a process of its own."""
    os.chdir(folder)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - to the process's end
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as usual
    torch.set_num_threads(1)
    config = load_experiment("imagenet32_dual", [*SETTINGS, f"data.path={data}"], ROOT / "experiments")
    train(config, Run(Path("run")), [Journal(Path("journal"))])


def start(folder: Path, data: Path) -> BaseProcess:
    """The same command again; modules are loaded already, so that most of a life is training."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dualscore.train_experiment", "torture"])
    process = context.Process(target=go, args=(str(folder), str(data)))
    process.start()
    return process


def steps(folder: Path) -> dict[int, list[int]]:
    """The images of each step, as it was made last; steps made twice must have had the same."""
    made: dict[int, list[int]] = {}
    for line in read(folder / "journal"):
        if line["what"] == "training" and made.setdefault(line["step"], line["images"]) != line["images"]:
            raise AssertionError(f"step {line['step']} was made again with other images")
    return made


def unreadable(folder: Path) -> list[str]:
    """Checkpoints that cannot be read."""
    bad = []
    for path in folder.glob("run/checkpoints/*.ckpt"):
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            bad.append(str(error))
    return bad


def differs(folder: Path, whole: Path) -> list[str]:
    """What distinguishes a finished run from one that was never interrupted."""
    bad = []
    for name in ("last", "best"):
        a, b = (torch.load(f / f"run/checkpoints/{name}.ckpt", weights_only=True) for f in (folder, whole))
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            if str(flat(a[key])) != str(flat(b[key])):
                bad.append(f"{name}.ckpt: other {key}")
    if steps(folder) != steps(whole):
        bad.append("other images, or in another order")
    figures = [json.loads((f / "run/evaluation.json").read_text())["bits_per_dim"] for f in (folder, whole)]
    if figures[0] != figures[1]:
        bad.append("other figures")
    return bad


def flat(state: Any) -> Any:
    """A nested state with the bytes of its tensors."""
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes().hex()
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    return [flat(value) for value in state] if isinstance(state, list | tuple) else state


def missed_or_twice(folder: Path) -> int:
    """Epochs in which an image was missed or seen twice."""
    made, bad = steps(folder), 0
    each = IMAGES // BATCH
    for first in range(0, STEPS - each + 1, each):
        seen = Counter(image for step in range(first, first + each) for image in made[step])
        bad += set(seen) != set(range(IMAGES)) or max(seen.values()) > 1
    return bad


def wait_for(chance: random.Random, process: BaseProcess, journal: Path, known: int) -> None:
    """Wait until some moment of a life that has begun with so many lines in its journal."""
    target = chance.choice(("starting", "training", "validating", "saving", "evaluating", "anything"))
    after, delay = known + chance.randrange(12), chance.uniform(0.0, 0.03)
    if target == "starting":
        process.join(chance.uniform(0.0, 0.3))
        return
    while process.is_alive():
        reached = [line["what"] for line in read(journal)][after:]
        if target in reached or (target == "anything" and reached):
            process.join(delay)
            return
        time.sleep(0.002)


def torture(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Run the campaign.

    Args:
        folder: an empty one.
        kills: how many.
        seed: of the moments.

    Returns:
        The report; `faults` lists what was lost.
    """
    chance = random.Random(seed)
    train, _, _ = write_official_imagenet(folder / "source", 32, train_images=IMAGES + 5, val_images=40)
    assert len(train) == IMAGES
    data = folder / "data"
    if prepare(
        ["build", "imagenet32", "--src", str(folder / "source"), "--out", str(data), "--workers", "1"]
    ):
        raise RuntimeError("no data")
    whole = folder / "whole"
    whole.mkdir()
    process = start(whole, data)
    process.join()
    faults = [] if process.exitcode == 0 else [f"the uninterrupted run ended with {process.exitcode}"]
    fell: Counter[str] = Counter()
    runs = resumes = 0
    while sum(fell.values()) < kills and not faults:
        runs += 1
        current = folder / f"run-{runs}"
        current.mkdir()
        while True:
            known = sum(1 for _ in read(current / "journal"))
            process = start(current, data)
            if sum(fell.values()) < kills:
                wait_for(chance, process, current / "journal", known)
                process.kill()
            process.join()
            if process.exitcode == 0:
                break
            if process.exitcode != -signal.SIGKILL:
                faults.append(f"{current.name}: ended with {process.exitcode}")
                break
            lines = list(read(current / "journal"))
            fell[(lines[-1]["what"] if len(lines) > known else "") or "starting"] += 1
            resumes += 1
            faults += unreadable(current)
        if not faults:
            faults += differs(current, whole)
            if bad := missed_or_twice(current):
                faults.append(f"{current.name}: {bad} epochs with images missed or seen twice")
        shutil.rmtree(current)
    return {
        "seed": seed,
        "kills": sum(fell.values()),
        "fell in": dict(sorted(fell.items())),
        "resumes": resumes,
        "runs finished": runs,
        "steps a run": STEPS,
        "faults": faults,
    }


def main() -> int:
    """Print the report; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = torture(Path(folder), arguments.kills, arguments.seed)
    print(json.dumps(report, indent=1))
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""Types commands under random conditions that people run into, and looks whether anything is lost in silence.

    make faults [COMBINATIONS=300] [SEED=0]

Each combination is a command (train, evaluate, score, ood, data build, data verify) and up to four of the
conditions in `conditions.py`. It must end in time, without a traceback, with a documented status; an error is
one line, of a kind that the conditions permit. A figure is of all images that are not named as left out, and
the undisturbed command's where nothing spoils an image. A command that was stopped ends, typed again, with
what it would have ended with. ARGS="--only 17" does one combination alone; its folder is kept.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import forking
import spoiled as spoiled  # which has conditions, too
from conditions import CONDITIONS, EVERYWHERE, Trial, hard_folder
from fakes import photograph, photograph_paths
from outcomes import ALBUM, INSIDE, Fault, agree, check_end, result
from workspace import ROOT, TINY

LIMIT = 60
"""Seconds that a command may take."""
SETTINGS = [
    *TINY, "optim.warmup_steps=0", "optim.ema_steps=3", "trainer.max_steps=6", "trainer.validate_every=3",
    "data.dataset=folder", "data.channels=3", "network.scales=1", "trainer.validate_images=20",
    "evaluate.images=20", "evaluate.train_images=16", "evaluate.subset_images=16", "evaluate.ode_images=2",
    "evaluate.batch_size=8", "data.shuffle_buffer=64",
]  # fmt: skip
MAIN = "import sys; from dualscore.cli import main; sys.exit(main())"
ORDINARY = """
import ctypes, multiprocessing, sys, tempfile
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)  # no privileges are gained again, as by what root executes
libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())  # permissions hold for root, too
tempfile.tempdir = None
multiprocessing.current_process()._config.pop("tempdir", None)
"""
"""Makes a fork a user's new process."""


def typed(trial: Trial, url: str) -> list[str]:
    """The command line of a trial."""
    command, workers = trial.command, str(trial.workers)
    path = f"{url}/shards" if "read_only_cache" in trial.conditions else str(trial.shards)
    settings = [f"data.workers={workers}", f"data.path={path}", f"data.cache={trial.work / 'cache'}"]
    streaming = ["--resize", "--batch-size", "6", "--workers", workers]
    words = {
        "train": ["train", "patches_dual", *SETTINGS, *settings],
        "evaluate": ["evaluate", "patches_dual", *settings],
        "score": ["score", "runs/patches_dual", "album", "--out", "scores"],
        "ood": ["ood", "runs/patches_dual", "--in", "inside", "--out", "album", "--results", "results"],
        "build": ["data", "build", *trial.source, "--out", "made", "--workers", str(max(1, trial.workers))],
        "verify": ["data", "verify", "shards", "--workers", "1"],
    }[command]  # fmt: skip
    return words + (streaming if command in ("score", "ood") else []) + trial.words


def execute(trial: Trial, words: list[str], disturbed: bool) -> tuple[int, str, str]:
    """Type a command; its status, and what it printed on both streams. Fault if it does not end."""
    before = trial.before if disturbed else []
    code = "\n".join([ORDINARY, *before, MAIN])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MAKE"))}
    places = (ROOT / "src", ROOT, ROOT / "tests")
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, places)), "OMP_NUM_THREADS": "1"}
    environment |= trial.environment if disturbed else {}
    start = subprocess.Popen if trial.python and disturbed else forking.Popen
    process = start(
        [sys.executable, "-c", code, *words], cwd=trial.work, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        if disturbed and trial.meanwhile:
            trial.meanwhile(trial, process.pid)
        printed = process.communicate(timeout=LIMIT)
        left = _left(process.pid)
    except subprocess.TimeoutExpired:
        raise Fault(f"does not end within {LIMIT} s") from None
    finally:
        for each in _session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        process.wait()
    out, err = (text.decode("utf-8", "replace") for text in printed)
    (trial.folder / "printed").write_text(f"{out}\n{err}\nstatus {process.returncode}\n")
    if process.returncode == 0 and left:
        raise Fault(f"leaves {len(left)} processes behind")
    return process.returncode, out, err


def _left(leader: int) -> set[int]:
    """Processes that go on though their session's leader has ended, for a while."""
    deadline = time.monotonic() + 5
    while (left := _session(leader)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _session(leader: int) -> set[int]:
    """Processes of a session that have not ended."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.add(int(stat.parent.name))
    return found


class Campaign:
    """Trials in a folder, beside what they share: pictures, shards, a trained run, undisturbed results."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.base = folder / "base"
        self.undisturbed: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        handler = partial(Quiet, directory=str(self.base))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        os.environ["no_proxy"] = "127.0.0.1"

    def prepare(self) -> None:
        """Make what trials share, with the commands themselves, undisturbed."""
        for name in ("album", "inside"):
            (self.base / name).mkdir(parents=True)
        names = list(photograph_paths())
        for k in range(ALBUM):
            x = 120 * (k // 7)
            photograph(names[k % 7]).crop((x, 60, x + 48, 108)).save(self.base / f"album/{k}0.png")
        for k in range(INSIDE):
            photograph(names[k % 7]).crop((8 * k, 100, 8 * k + 32, 132)).save(self.base / f"inside/{k}.png")
        for command in ("build", "verify", "train", "evaluate", "score", "ood"):
            trial = Trial(-1, command, self.base, random.Random(0), 0.0)
            self.set_out(trial)
            for number in range(2):  # the first of all imports the libraries
                begun = time.monotonic()
                status, out, err = execute(trial, typed(trial, self.url), True)
                if status:
                    raise Fault(f"undisturbed {command} ended with {status}: {err}")
                self.seconds[command] = time.monotonic() - begun
                if command != "build" or number:
                    break
                shutil.rmtree(self.base / "made")
            if command == "build":
                (self.base / "shards").symlink_to("made")
            self.undisturbed[command] = result(trial, out)
        two = Trial(-2, "train", self.folder / "two", random.Random(0), 0.0, "here", workers=2)
        self.set_out(two)  # how many processes read decides the order of images
        self.undisturbed["train by two"] = result(two, execute(two, typed(two, self.url), True)[1])

    def set_out(self, trial: Trial) -> None:
        """Put into a trial's folder what its command needs."""
        if trial.folder == self.base:
            if not (self.base / "experiments").exists():
                (self.base / "experiments").symlink_to(ROOT / "experiments")
            return
        trial.work.mkdir(parents=True)
        (trial.work / "experiments").symlink_to(ROOT / "experiments")
        (trial.work / "inside").symlink_to(self.base / "inside")
        (trial.work / "shards").symlink_to(self.base / "made")
        shutil.copytree(self.base / "album", trial.work / "album")
        if trial.command != "train":
            shutil.copytree(self.base / "runs", trial.work / "runs")
        if trial.command == "evaluate":
            shutil.rmtree(trial.work / "runs/patches_dual/evaluation")
            (trial.work / "runs/patches_dual/evaluation.json").unlink()

    def draw(self, number: int) -> Trial:
        """A trial by its number: the same at every time."""
        chance = random.Random(f"{self.seed} {number}")
        command = chance.choice(EVERYWHERE)
        where = hard_folder(chance) if chance.random() < 0.15 else "here"
        trial = Trial(number, command, self.folder / str(number), chance, self.seconds[command], where)
        possible = [name for name, (commands, _) in CONDITIONS.items() if command in commands]
        drawn = chance.sample(possible, chance.randint(1, 4))
        signals = {"ctrl_c", "sigterm", "hangup", "pause", "killed_worker"}
        told = [name for name in drawn if name in signals]  # one at a time
        trial.conditions = [name for name in drawn if name not in told[1:]]
        return trial

    def one(self, number: int) -> tuple[Trial, str]:
        """Do a trial; it and what was wrong, or nothing."""
        trial = self.draw(number)
        self.set_out(trial)
        for name in trial.conditions:
            CONDITIONS[name][1](trial)
        try:
            self.fill_cache(trial)
            words = typed(trial, self.url)
            about = {"words": words, "environment": trial.environment, "before": trial.before}
            (trial.folder / "typed").write_text(json.dumps(about, indent=1))
            status, out, err = execute(trial, words, True)
            check_end(trial, status, out, err)
            if status in trial.ends and not any(re.search(p, err) for p in trial.refusals):
                status, out, err = execute(trial, words, False)
                check_end(trial, status, out, err)
                if status in trial.ends:
                    raise Fault(f"ended with {status}, though nothing stopped it")
            if status == 0:
                found = result(trial, out)
                key = "train by two" if (trial.command, trial.workers) == ("train", 2) else trial.command
                if trial.same and not agree(trial.command, found, self.undisturbed[key]):
                    raise Fault("another result than the undisturbed command's")
        except Fault as fault:
            return trial, str(fault)
        except Exception as error:  # noqa: BLE001 - what was promised is missing
            return trial, f"its result cannot be read: {error!r}"
        return trial, ""

    def fill_cache(self, trial: Trial) -> None:
        """Fill a cache by a command, then let nobody write it."""
        if "read_only_cache" not in trial.conditions:
            return
        from dualscore.data import transfer
        from dualscore.data.source import RemoteFolder

        cache = trial.work / "cache"
        shards = RemoteFolder(transfer.Address(f"{self.url}/shards"), cache, 1.0)
        for split in shards.manifest.splits.values():
            for shard in split.shards:
                os.close(shards.open(shard))
        for path in (*cache.rglob("*"), cache):
            path.chmod(0o555 if path.is_dir() else 0o444)


class Quiet(SimpleHTTPRequestHandler):
    """A server that says nothing."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


def main() -> int:
    """Print the report; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--combinations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--only", type=int, nargs="+")
    parser.add_argument("--keep", type=Path, help="where folders are kept")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp())
    campaign = Campaign(folder, arguments.seed)
    begun = time.monotonic()
    campaign.prepare()
    numbers = arguments.only or range(arguments.first, arguments.combinations)
    wrong, met = {}, Counter()
    for number in numbers:
        trial, fault = campaign.one(number)
        met.update([trial.command, *trial.conditions])
        if fault:
            wrong[number] = fault
            print(
                f"{number}: {trial.command} with {', '.join(trial.conditions)}: {fault}; see {trial.folder}",
                flush=True,
            )
        elif not arguments.only:
            shutil.rmtree(trial.folder)
    print(
        json.dumps(
            {
                "seed": arguments.seed,
                "combinations": len(numbers),
                "met": dict(sorted(met.items())),
                "seconds": round(time.monotonic() - begun),
                "faults": wrong,
            },
            indent=1,
        )
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

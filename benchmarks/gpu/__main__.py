"""Answers what can be asked of a GPU, unattended, the most wanted first; interrupted, it goes on.

make gpu-report [MINUTES=25] [OUT=gpu-report] [COMPARE=other/report.json]
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from rich.console import Console

from benchmarks.gpu.jobs import read_rows, run_jobs
from benchmarks.gpu.page import collect, compare, read_report, write_page
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.setting import ROOT, Setting
from dualscore.terminal.any_terminal import fit_any_terminal

LEAST = 10.0
"""Seconds that a part is begun with."""
FINAL = {"complete", "nothing to measure here"}
"""States after which a part is not run again."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make gpu-report", description=__doc__)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--out", type=Path, default=Path("gpu-report"))
    parser.add_argument("--compare", type=Path, help="report.json of another machine")
    parser.add_argument("--toy", action="store_true", help="networks and sets for a CPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="some parts")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Run the parts that are missing and write the page after each."""
    fit_any_terminal()
    parser = _parser()
    arguments = parser.parse_args()
    setting = Setting(arguments.out.resolve(), arguments.toy)
    if arguments.part:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        run_jobs(PARTS[arguments.part].jobs(setting), setting.out / "parts" / f"{arguments.part}.json")
        return 0
    try:
        second = read_report(arguments.compare) if arguments.compare else None
    except ValueError as error:
        parser.error(f"COMPARE={error}")
    console = Console()
    if setting.device.type == "cpu" and not arguments.toy:
        console.print("there is no GPU here: networks and sets are made small enough for a CPU")
        setting = Setting(setting.out, toy=True)
    deadline = time.monotonic() + 60 * arguments.minutes
    states = {name: _state(setting, name) for name in PARTS}
    missing = [name for name in arguments.only or PARTS if states[name] not in FINAL]
    # Each in its share of the time first; then, with what the others left over, those that it stopped.
    for turn in (missing, missing):
        for place, name in enumerate(turn):
            left = deadline - time.monotonic()
            if states[name] in FINAL or left < LEAST:
                continue
            shares = [PARTS[other].share for other in turn[place:] if states[other] not in FINAL]
            limit = left if PARTS[name].needed else max(LEAST, left * shares[0] / sum(shares))
            console.print(f"{PARTS[name].title} (at most {limit:.0f} s)", highlight=False, soft_wrap=True)
            states[name] = _run(setting, name, limit)
            report = collect(setting.out, states)
            write_page(setting.out, report)
    report = collect(setting.out, states)
    write_page(setting.out, report)
    for line in report["arithmetic"]:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"written to {setting.out / 'report.md'}", highlight=False, soft_wrap=True)
    if second is not None:
        console.print(f"written to {compare(setting.out, report, second)}", highlight=False, soft_wrap=True)
    return 0


def _state(setting: Setting, name: str) -> str:
    """What is known of a part from an earlier run of the command."""
    path = setting.out / "parts" / f"{name}.done"
    return (
        path.read_text(encoding="utf-8")
        if path.exists()
        else "not begun: no time was left; the same command goes on with it"
    )


def _run(setting: Setting, name: str, limit: float) -> str:
    """Run a part in a process of its own, so that whatever ends it leaves the others alone."""
    (setting.out / "parts").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--out", str(setting.out)]
    log = setting.out / "parts" / f"{name}.log"
    environment = setting.environment | {
        "TORCHINDUCTOR_CACHE_DIR": str(setting.work / "inductor"),  # empty, so that the first is a cold one
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what deterministic products need
    }
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *(["--toy"] if setting.toy else [])],
            cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return "stopped by its share of the time; the same command goes on with it"
        finally:
            _end(process)
    if process.returncode:
        last = log.read_text(errors="replace").strip().splitlines()
        return f"failed: {last[-1] if last else process.returncode}"[:300]
    rows = read_rows(setting.out / "parts" / f"{name}.json")
    failed = [row for row, figures in rows.items() if "failed" in figures]
    if failed:
        return f"{len(failed)} of {len(rows)} failed: the same command tries them again"
    state = "complete" if rows else "nothing to measure here"
    (setting.out / "parts" / f"{name}.done").write_text(state, encoding="utf-8")
    return state


def _end_with(parent: int) -> None:
    """End this part, and all that it started, when the command that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a part and all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")

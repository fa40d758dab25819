"""What may come of a trial of `faults.py`, and what must not."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import torch

from conditions import Trial
from spoiled import ARCHIVED

ALBUM, INSIDE = 21, 42
"""Pictures in the album, and in the other folder that `ood` takes."""


class Fault(Exception):  # noqa: N818 - what the campaign is looking for
    """Something that must not be."""


def check_end(trial: Trial, status: int, out: str, err: str) -> None:
    """Fault unless a command ended as it may: in success, stopped, or with one line of a permitted kind."""
    if "Traceback" in out + err or "Exception ignored" in out + err:
        raise Fault("a traceback")
    if status == 0:
        if trial.must_refuse:
            raise Fault("not refused")
        return
    if status in trial.ends:
        return
    lines = err.strip().splitlines()
    if status not in (1, 2, 3, 4) or not lines:
        raise Fault(f"status {status}, with {len(lines)} lines")
    if trial.command == "verify" and status == 1 and all(line.startswith("error: ") for line in lines):
        lines = lines[:1]
    if not lines[-1].startswith("error: "):
        raise Fault(f"status {status} without an error in its last line")
    if not any(re.search(pattern, lines[-1]) for pattern in trial.refusals):
        raise Fault(f"refused for a reason that no condition gives: {lines[-1]}")


def result(trial: Trial, out: str) -> Any:
    """What a command ended with, to be compared; Fault if images are missing."""
    known = "already complete" in out
    if missing := [text for text in trial.said if text not in out and not known]:
        raise Fault(f"not a word of this: {missing[0]}")
    work = trial.work
    wanted = ALBUM + trial.entries
    match trial.command:
        case "train" | "evaluate":
            report = json.loads((work / "runs/patches_dual/evaluation.json").read_text())
            counts = report["bits_per_dim"]["paper"]["images"], report["train"]["images"]
            if counts != (20, 16) or not report["complete"]:
                raise Fault(f"figures are of {counts} images, not of 20 and 16")
            if not (work / "runs/patches_dual/config.yaml").exists() or not out.strip():
                raise Fault("a run, and not a word")
            last = torch.load(work / "runs/patches_dual/checkpoints/last.ckpt", weights_only=True)
            weights = {name: value.numpy().tobytes() for name, value in last["state_dict"].items()}
            return [report[name] for name in ("bits_per_dim", "train", "noise_levels")], weights
        case "score":
            rows, left_out = (read(work / "scores" / name) for name in ("scores.csv", "failures.csv"))
            summary = json.loads((work / "scores/scores.json").read_text())
            counts = summary["images"], summary["failed"], len(summary["scores"])
            if counts != (len(rows), len(left_out), len(rows)):
                raise Fault("scores.json counts otherwise than scores.csv")
            if len(rows) + len(left_out) != wanted:
                raise Fault(f"{len(rows)} scored and {len(left_out)} left out are not {wanted}")
            if left_out and "left out" not in out:
                raise Fault("left out, and not a word")
            return {row["file"]: row["bits_per_dim"] for row in rows}
        case "ood":
            rows, left_out = (read(work / "results" / name) for name in ("ood.csv", "failures.csv"))
            if left_out and "left out" not in out:
                raise Fault("left out, and not a word")
            if len(rows) + len(left_out) != wanted + INSIDE:
                raise Fault(f"{len(rows)} measured and {len(left_out)} left out are not {wanted + INSIDE}")
            return {row["file"]: row["bits_per_dim"] for row in rows}
        case "build":
            manifest = json.loads((work / "made/manifest.json").read_text())
            if trial.source[0] == "cifar10":
                if (images := sum(split["images"] for split in manifest["splits"].values())) != 6 * ARCHIVED:
                    raise Fault(f"{images} images, of {6 * ARCHIVED}")
                return None
            counts = manifest["source"]["photographs"]
            named = [w for w in manifest["source"]["warnings"] if w.startswith("left out")]
            if sum(counts.values()) != wanted or len(named) != counts["left_out"]:
                raise Fault(f"{counts}, {len(named)} of them named, are not {wanted}")
            if not known and out.count("left out: ") != len(named):
                raise Fault("left out, and not a word")
            return {s["file"]: s["sha256"] for split in manifest["splits"].values() for s in split["shards"]}
    return None


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def agree(command: str, found: Any, undisturbed: Any) -> bool:
    """Whether a result is the undisturbed one: scores of the album's own pictures, all else exactly."""
    if command in ("score", "ood"):
        return all(
            name in found and math.isclose(float(found[name]), float(bits), rel_tol=1e-4)
            for name, bits in undisturbed.items()
        )
    return bool(found == undisturbed)

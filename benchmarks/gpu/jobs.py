"""A part of the report is a table of jobs; each result is kept as it comes, so that a part can go on."""

import gc
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dualscore.files.aside import write_aside

Row = dict[str, Any]
"""One result: figures by name, each name with its unit."""
Jobs = Mapping[str, Callable[[], Row]]


def read_rows(path: Path) -> dict[str, Row]:
    """The results kept so far; none where the file is not there or was cut off."""
    try:
        rows: dict[str, Row] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return rows


def write_json(path: Path, content: object) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, (json.dumps(content, indent=1) + "\n").encode())


def run_jobs(jobs: Jobs, path: Path) -> None:
    """Run what has no result yet, one after the other; one that fails is named and passed over.

    Args:
        jobs: by name, the most wanted first.
        path: where results are kept.
    """
    rows = read_rows(path)
    for name, job in jobs.items():
        if name in rows and "failed" not in rows[name]:
            continue
        start = time.perf_counter()
        try:
            row = job()
        except Exception as error:  # noqa: BLE001 - whatever one job meets, the others still answer
            said = str(error).strip().splitlines()
            row = {"failed": f"{type(error).__name__}: {said[0] if said else ''}"[:300]}
        rows[name] = row | {"took, s": round(time.perf_counter() - start, 1)}
        write_json(path, rows)
        forget()


def forget() -> None:
    """Give back what a job held, so that the next one's memory is its own."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""Whether a folder holds the build of this request, and which files of the source changed since."""

import hashlib
import os
from pathlib import Path
from typing import Any

from data_prep.plan import Request
from data_prep.shard_writer import BUILD_FOLDER
from dualscore.data.shards import FORMAT
from dualscore.errors import DataError
from dualscore.files.plain_text import printable
from dualscore.files.typed_json import parse_json

PREPARATION = 2  # raise it when the same request would give other bytes
STAMPS_FILE = "source_files.json"
Stamps = list[tuple[str, tuple[int, int]]]
"""Names of files, each with its bytes and the time of its last change, in ns."""


def plan_path(out: Path) -> Path:
    """Where a folder keeps the request that it was begun by."""
    return out / BUILD_FOLDER / "plan.json"


def make_fingerprint(request: Request, stamps: Stamps) -> dict[str, Any]:
    """What decides every byte of the result, as far as one can tell without reading the files."""
    digest = hashlib.sha256()
    for name, (size, touched) in stamps:
        digest.update(f"{name}\0{size}\0{touched}\n".encode(errors="surrogateescape"))
    return {
        "format": FORMAT,
        "preparation": PREPARATION,
        "dataset": request.dataset,
        "size": request.size,
        "val_fraction": request.val_fraction,
        "test_fraction": request.test_fraction,
        "seed": request.seed,
        "images_per_shard": request.images_per_shard,
        "source_files": f"{len(stamps)} files, {digest.hexdigest()}",
    }


def make_stamps(request: Request, files: list[Path]) -> Stamps:
    """Each file's name, its bytes and when it was changed, in ns."""
    stamps = []
    for path in files:
        inside = request.src is not None and request.src in path.parents
        name = path.relative_to(request.src).as_posix() if request.src and inside else path.name
        status = path.stat()
        stamps.append((name, (status.st_size, status.st_mtime_ns)))
    return stamps


def _changed_files(out: Path, stamps: Stamps) -> str:
    """Which files of the source are not what they were, as far as the earlier build wrote it down."""
    try:
        before = {
            name: tuple(stamp) for name, stamp in parse_json((out / BUILD_FOLDER / STAMPS_FILE).read_bytes())
        }
    except (OSError, ValueError, TypeError):
        return ""
    now = dict(stamps)
    lists = {
        "changed or touched": [n for n in now if n in before and before[n] != now[n]],
        "new": [n for n in now if n not in before],
        "gone": [n for n in before if n not in now],
    }
    return "".join(
        f"; {what}: {', '.join(map(printable, names[:3]))}{', …' if names[3:] else ''}"
        for what, names in lists.items()
        if names
    )


def refuse_other_content(out: Path, fingerprint: dict[str, Any], stamps: Stamps) -> None:
    """Refuse a folder that holds something other than a build of this request, as DataError."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: choose a folder as --out")
    try:
        earlier = parse_json(plan_path(out).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        others = [name for name in os.listdir(out) if name != BUILD_FOLDER] if out.is_dir() else []
        if others:
            raise DataError(
                f"{out} is not empty (it holds {min(others)}): choose an empty or new --out"
            ) from None
        return
    except ValueError as error:
        raise DataError(
            f"{plan_path(out)} is damaged ({error}): delete {out} or choose another --out"
        ) from None
    if earlier == fingerprint:
        return
    if not any(out.glob("*.tar")):
        return  # nothing came of the earlier request
    keys = [key for key in fingerprint if earlier.get(key) != fingerprint[key]]
    change = "; ".join(f"{key}: there {earlier.get(key)}, now {fingerprint[key]}" for key in keys)
    if "source_files" in keys:
        change += _changed_files(out, stamps)
    raise DataError(
        f"{out} holds the build of another request ({change}): choose another --out or delete that one"
    )

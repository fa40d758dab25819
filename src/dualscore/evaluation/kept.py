"""Files for what is fitted once per data set: NAME-HASH.safetensors, whole or absent.

A file's header holds what decides its content, and a digest of both; nothing in it is ever executed. A file
that is damaged, or of something else, is as if it were not there. Two processes that find nothing both make
the same, and either's file is as good as the other's.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from dualscore.files.aside import write_aside
from dualscore.model_files.exported import digest

Tensors = dict[str, Tensor]
_ENTRY = "dualscore"


@dataclass(frozen=True)
class Keep:
    """A cache of tensors that take long to make, in files of the given folders.

    They are looked through in order; the first that can be written to gets new files. Without any, everything
    is made anew.
    """

    folders: Sequence[Path]

    def __call__(
        self,
        name: str,
        identity: dict[str, Any],
        fits: Callable[[Tensors], bool],
        make: Callable[[], Tensors],
    ) -> Tensors:
        """Tensors on the CPU, from a file NAME-… of this identity if they fit, or made and written.

        The identity, plain values, is what decides them; `fits` tells whether what was read has the right
        shapes.
        """
        text = json.dumps(identity, sort_keys=True)
        file = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"
        for folder in self.folders:
            found = _read(folder / file, identity)
            if found is not None and fits(found):
                return found
        made = {key: value.detach().cpu().contiguous() for key, value in make().items()}
        header = {"identity": identity, "digest": digest(identity, made)}
        content = to_bytes(made, {_ENTRY: json.dumps(header, sort_keys=True)})
        for folder in self.folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_aside(folder / file, content)
            except OSError:
                continue  # not ours to write to, or full
            break
        return made


def _read(path: Path, identity: dict[str, Any]) -> Tensors | None:
    """The tensors of a file that says it is what is looked for, and is whole."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_ENTRY, "{}"))
            if not isinstance(header, dict) or header.get("identity") != identity:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError, RecursionError):
        return None
    return tensors if header.get("digest") == digest(identity, tensors) else None

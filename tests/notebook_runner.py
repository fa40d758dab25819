"""Executes a notebook as its reader would, with other parameters, and hands over its figures and values."""

import ast
import base64
import io
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

from workspace import ROOT

FOLDER = ROOT / "notebooks"
TAG = "parameters"


@dataclass(frozen=True)
class Executed:
    """What a notebook showed."""

    figures: list[Image.Image]
    printed: str
    values: dict[str, Any]


def read(name: str) -> nbformat.NotebookNode:
    """A notebook of the project, checked against the format."""
    found = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(found)
    return found


def parametrize(notebook: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Set parameters in a cell after the one tagged so, as papermill does; only names that stand there."""
    (place,) = [k for k, cell in enumerate(notebook.cells) if TAG in cell.metadata.get("tags", ())]
    assigned = {
        target.id
        for node in ast.parse(notebook.cells[place].source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert set(parameters) <= assigned, f"no such parameters: {set(parameters) - assigned}"
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(source))


def execute(name: str, project: Path, parameters: Mapping[str, Any], values: Mapping[str, str]) -> Executed:
    """Run every cell; the first one that fails raises.

    `project` stands for the project's folder, with notebooks/ in it; `values` are expressions that are
    evaluated after the last cell.
    """
    notebook = read(name)
    parametrize(notebook, parameters)
    asked = "{" + ", ".join(f"{key!r}: {expression}" for key, expression in values.items()) + "}"
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\n\nprint(json.dumps({asked}))"))
    folder = project / "notebooks"
    folder.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"} | {
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "1",
    }
    # Without folders to look in, jupyter_client knows one kernel: the ipykernel beside this interpreter.
    kernels = KernelSpecManager(kernel_dirs=[])
    assert kernels.get_kernel_spec("python3").argv[0] == sys.executable
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels)
    client = NotebookClient(notebook, km=manager, timeout=240, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    figures = [
        Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
        for output in outputs
        if "image/png" in output.get("data", {})
    ]
    *printed, last = [output.text for output in outputs if output.get("name") == "stdout"]
    return Executed(figures, "".join(printed), json.loads(last))

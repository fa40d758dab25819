"""The runs that exist, for messages and completions."""

from pathlib import Path

from dualscore.settings.suggestions import did_you_mean
from dualscore.shipped import places

FEW = 8
"""How many names to list."""


def runs_below(root: Path = Path("runs")) -> list[str]:
    """Paths of runs with a checkpoint below a folder, sweeps' included, the latest first."""
    found = [*root.glob("*/checkpoints/*.ckpt"), *root.glob("*/*/checkpoints/*.ckpt")]
    latest: dict[Path, float] = {}
    for path in found:
        folder = path.parent.parent
        latest[folder] = max(latest.get(folder, 0.0), path.stat().st_mtime)
    return [str(folder) for folder in sorted(latest, key=lambda folder: -latest[folder])]


def missing_run(path: Path) -> str:
    """The end of a message about a missing run or model: what exists instead."""
    root = path.parent if path.parent != Path() else Path("runs")
    there = runs_below(root) or runs_below()
    is_experiment = any((place / f"{path.name}.yaml").is_file() for place in places("experiments"))
    if is_experiment and path.name not in {Path(run).name for run in there}:
        return f"{path.name} is not trained yet; dualscore train {path.name} trains it"
    if not there:
        return "there are no runs yet; dualscore train EXPERIMENT trains one"
    names = {Path(run).name: run for run in there}
    guess = did_you_mean(path.name, names)
    shown = ", ".join(there[:FEW]) + (f" and {len(there) - FEW} more" if len(there) > FEW else "")
    return f"{guess}there are: {shown}"

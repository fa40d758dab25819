"""How fast training is: every figure a ratio of things timed side by side in one run.

    make bench [EXP=imagenet64_dual] [SET="data.batch_size=8 …"] [REPEATS=5] [OUT=bench.json]

The batch is `data.batch_size`; images are random, but those of the evaluation. The baseline is
`benchmarks/plain.py`: the same mathematics as anybody would write it down.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from evaluation import evaluation_figures, make_demo
from guards import guard_figures
from loading import loader_figures
from parallel import parallel_figures
from plain import plain, plain_loss
from rich.console import Console
from rich.table import Table
from scoring import scoring_figures
from timing import Time, flops, matmul_rate, peak_bytes, side_by_side
from torch import Tensor

from dualscore.assemble import blank_statistics, build_score_model, image_shape
from dualscore.noise import log_uniform
from dualscore.objective import dual_score_matching
from dualscore.settings.config import ExperimentConfig, ModelKind
from dualscore.settings.experiment import load_experiment
from dualscore.terminal.any_terminal import fit_any_terminal
from dualscore.training.optimizers import compiled_loss, make_optimizer, obstacle

Job = Callable[[], object]
DEFAULT = ["data.batch_size=8"]


@dataclass
class Subject:
    """What is timed: a model, its copies, and one batch."""

    config: ExperimentConfig
    device: torch.device

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        statistics = blank_statistics(image_shape(self.config))
        self.model = build_score_model(self.config, statistics).to(self.device)
        self.plain = plain(self.model)
        batch = self.config.data.batch_size
        self.clean = torch.rand(batch, *image_shape(self.config), device=self.device)
        self.noise = torch.randn_like(self.clean)
        low, high = self.config.noise.t_min, self.config.noise.t_max
        self.t = log_uniform(torch.linspace(0.0, 1.0, batch, device=self.device), low, high)

    def autocast(self) -> Any:  # noqa: ANN401 - a context
        """The experiment's precision."""
        mixed = self.config.trainer.precision == "bf16-mixed"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixed)

    def forward(self, model: torch.nn.Module) -> Job:
        """One network evaluation for each image, as in measuring a likelihood."""

        def job() -> None:
            with torch.no_grad():
                model(self.clean, self.t)

        return job

    def step(self, loss: Callable[..., Any], model: torch.nn.Module) -> Job:
        """Loss and gradient of the weights."""

        def job() -> None:
            model.zero_grad(set_to_none=True)
            with self.autocast():
                found = loss(model, self.clean, self.noise, self.t)
            total: Tensor = found if isinstance(found, Tensor) else found.total.mean()
            total.backward()

        return job

    def variants(self, compiled: bool) -> dict[str, Job]:
        """The steps that are compared."""
        jobs = {
            "plain step": self.step(plain_loss, self.plain),
            "step": self.step(dual_score_matching, self.model),
        }
        if compiled:
            jobs["compiled step"] = self.step(compiled_loss(self.device.type), self.model)
        return jobs


def speed(subject: Subject, repeats: int, compiled: bool) -> dict[str, Time]:
    """Forward pass, steps, and a step's parts."""
    optimizer = make_optimizer(subject.model, subject.config.optim)
    same = {part: getattr(subject.config, part) for part in ("data", "network")}
    keys = ["data.size", "data.channels", "data.batch_size", "network.width", "network.scales"]
    settings = [f"{key}={getattr(same[key.split('.')[0]], key.split('.')[1])}" for key in keys]
    denoiser_config = load_experiment("imagenet64_denoiser", ["data.streams=1", *settings])
    denoiser = build_score_model(denoiser_config, blank_statistics(image_shape(denoiser_config)))
    denoiser = denoiser.to(subject.device)

    def gradients() -> None:
        with torch.no_grad(), subject.autocast():
            subject.model.gradients(subject.clean, subject.t)

    jobs: dict[str, Job] = {
        "plain forward": subject.forward(subject.plain),
        "forward": subject.forward(subject.model),
        "forward and both gradients": gradients,
        "denoiser's step": subject.step(dual_score_matching, denoiser),
        **subject.variants(compiled),
        "optimiser": optimizer.step,
    }
    return side_by_side(jobs, repeats)


def memory(arguments: argparse.Namespace, variant: str) -> int | None:
    """Peak memory of a step above the weights, measured in a process of its own."""
    command = [sys.executable, __file__, *arguments.settings, "--experiment", arguments.experiment]
    done = subprocess.run([*command, "--memory", variant], capture_output=True, text=True, check=True)
    found: int | None = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, print tables and write JSON."""
    fit_any_terminal()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", help="key=value, as for training")
    parser.add_argument("--experiment", default="imagenet64_dual")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    config = load_experiment(arguments.experiment, [*DEFAULT, "data.streams=1", *arguments.settings])
    if config.model is ModelKind.denoiser:
        parser.error(f"{config.name} is a denoiser; the bench is of energies")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subject = Subject(config, device)
    compiled = obstacle(device.type) is None
    if arguments.memory:
        print(json.dumps(peak_bytes(subject.variants(compiled=True)[arguments.memory])))
        return
    console = Console(width=130)
    times = speed(subject, arguments.repeats, compiled)
    rate = matmul_rate(device, arguments.repeats)
    jobs = {"forward": subject.forward(subject.model), **subject.variants(compiled=False)}
    counted = {name: flops(job) for name, job in jobs.items()}
    peaks = {name: memory(arguments, name) for name in subject.variants(compiled)}
    with tempfile.TemporaryDirectory() as folder:
        loading = loader_figures(Path(folder), config, subject.variants(False)["step"], arguments.repeats)
        data = make_demo(Path(folder))
        evaluation = evaluation_figures(Path(folder), data, arguments.repeats, config.network.width)
        guards = guard_figures(data)
        scoring = scoring_figures(Path(folder), config, arguments.repeats, config.data.batch_size)
    parallel = parallel_figures(config, arguments.repeats) if device.type == "cpu" else {}
    report = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "experiment": config.name,
        "settings": arguments.settings,
        "batch": config.data.batch_size,
        "precision": config.trainer.precision,
        "seconds": {name: t._asdict() for name, t in times.items()},
        "flops": counted,
        "matmul_flops_per_second": rate,
        "peak_bytes_above_weights": peaks,
        "loader": loading,
        "evaluation": evaluation,
        "scoring": scoring,
        "guards": guards,
        "parallel": parallel,
    }
    show(console, report)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        console.print(f"written to {arguments.out}")


def show(console: Console, report: dict[str, Any]) -> None:
    """Print the report as tables."""
    seconds, counted = report["seconds"], report["flops"]
    baseline, forward = seconds["plain step"]["median"], seconds["forward"]["median"]
    peaks = report["peak_bytes_above_weights"]
    table = Table("", "ms", "range", "forwards", "of plain step", "images/s", "of matmul", "MB above weights",
                  title=f"{report['experiment']}, batch {report['batch']}, {report['device']}")  # fmt: skip
    for name, t in seconds.items():
        operations = counted.get(name.removeprefix("compiled "))
        fraction = operations / t["median"] / report["matmul_flops_per_second"] if operations else None
        peak = peaks.get(name)
        table.add_row(
            name,
            f"{1e3 * t['median']:.1f}",
            f"{1e3 * t['low']:.1f} to {1e3 * t['high']:.1f}",
            f"{t['median'] / forward:.2f}",
            f"{t['median'] / baseline:.2f}",
            f"{report['batch'] / t['median']:,.0f}",
            "" if fraction is None else f"{fraction:.2f}",
            "" if peak is None else f"{peak / 2**20:,.0f} ({peak / peaks['plain step']:.2f})",
        )
    console.print(table)
    for part in ("loader", "evaluation", "scoring", "guards", "parallel"):
        for name, value in report[part].items():
            console.print(f"{name}: {value:,.3g}" if isinstance(value, float) else f"{name}: {value:,}",
                          highlight=False)  # fmt: skip


if __name__ == "__main__":
    main()

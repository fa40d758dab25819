"""What a training prints when it starts and when it is measured, with what to do next."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dualscore.assemble import blank_statistics, build_score_model, image_shape
from dualscore.errors import DualscoreError
from dualscore.measuring.estimators import label
from dualscore.measuring.row_figures import estimate_of
from dualscore.report_tables import print_report
from dualscore.runs.folder import Run
from dualscore.runs.run_status import Status, duration
from dualscore.settings.config import CAUSAL, RADIAL, ExperimentConfig
from dualscore.settings.experiment import load_experiment, read_header
from dualscore.terminal.boxes import print_summary
from dualscore.terminal.console import command, from_make, shared_console

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from dualscore.data.datamodule import ImageDataModule
    from dualscore.training.lightning_module import DualScoreModule


def introduce(
    config: ExperimentConfig,
    run: Run,
    module: "DualScoreModule",
    datamodule: "ImageDataModule",
    trainer: "Trainer",
    step: int,
) -> None:
    """Say what begins, or goes on from a step."""
    start = f"goes on from step {step:,}" if step else "starts"
    counts, options, batch = datamodule.counts, config.trainer, config.data.batch_size
    shape = "×".join(map(str, module.image_shape))
    where = f"in {datamodule.path}" if datamodule.path else "drawn as they are needed"
    images = f"{counts['train']:,} training images {shape}, {counts['val']:,} validation images, {where}"
    device, left = trainer.strategy.root_device.type, options.max_steps - step
    written = "checkpoints/ (last.ckpt, best.ckpt), evaluation.json, TensorBoard's events"
    rows = [
        ("model", f"{config.model.value}: {_about(config, module.model)}"),
        ("data", images),
        ("devices", f"{trainer.world_size} × {device}, precision {options.precision}"),
        ("work", f"{left:,} steps of {batch} images; validated every {options.validate_every:,}"),
        ("time", expected(run.folder, left * batch, config)),
        ("written to", f"{run.folder}: {written}"),
        ("to stop", "Ctrl-C; the same command goes on"),
    ]
    print_summary(shared_console(), f"{config.name} {start} in {run.folder}", rows)


def expected(folder: Path, images: int, config: ExperimentConfig) -> str:
    """How long training takes, in words: by the run's own speed, or as the experiment's file says."""
    if images <= 0:
        return "none: every step is done"
    status = Status.read(folder)
    if status is not None and status.images_per_second:
        speed = f"{status.images_per_second:,.0f} images/s"
        return f"{duration(images / status.images_per_second)} at this run's {speed} so far, and validations"
    later = "shown after the first steps"
    try:
        takes = read_header(config.name).takes
        whole = load_experiment(config.name).trainer.max_steps
    except DualscoreError:
        return later
    if not takes:
        return later
    if whole != config.trainer.max_steps:  # a part of it is not that part of the time: validations differ
        return f"{later}; of all its {whole:,} steps the experiment's file says: {takes}"
    return f"{takes} (its file says, of its own settings)"


def tell_complete(config: ExperimentConfig, run: Run, step: int) -> None:
    """Say that there is nothing to train, and what can be done instead."""
    shared_console().final(
        f"{run.folder} is complete ({step:,} steps). Train longer with trainer.max_steps=… (a cosine "
        "schedule is then stretched to the new length), anew beside it with --fresh, or measure it with "
        f"{command('evaluate', config.name, variables={'EXP': config.name})}.",
        soft_wrap=True,
    )


def _first_use(report: dict[str, Any], model: str) -> str:
    """What to do with a model of images: a denoiser has no energy to score by, or to accept steps."""
    if any(level["time_loss"] is not None for level in report["noise_levels"]):
        return command("score", model, "PHOTOS", variables={"CKPT": model, "IMAGES": "…"})
    langevin = {"CKPT": model, "METHOD": "langevin"}
    return command("sample", model, variables=langevin, options="--method langevin")


def tell_results(report: dict[str, Any], output: Path, checkpoint: Path) -> None:
    """Say what an evaluation of a checkpoint found, where it is written, and what can be done next."""
    print_report(report, shared_console())
    shared_console().print(f"written to {output}", soft_wrap=True)
    run = Run(checkpoint.parent.parent)
    is_best = run.best == checkpoint
    model = str(run.folder if is_best else checkpoint)
    following = []
    if report["image_shape"][1] > 1:  # no picture is a vector
        following.append(_first_use(report, model))
    if is_best:
        following.append(command("figures", model, variables={"RUN": model}))
        # The fast loader leaves out what curves say of themselves.
        served = f"tensorboard --load_fast=false --logdir {shlex.quote(str(run.folder.parent))}"
        following.append("make tensorboard" if from_make() else served)
    following.append(command("export", model, variables={"CKPT": model}))
    estimates = report["bits_per_dim"].items()
    rows = [
        *((label(k), f"{estimate_of(v)} bits/dim, {v['images']:,} images") for k, v in estimates),
        ("model", str(checkpoint)),
        ("figures", str(output)),
        ("next", following[0]),
        *(("", hint) for hint in following[1:]),
    ]
    title = f"{report['experiment']}, step {report['step']:,}, measured"
    print_summary(shared_console(), title, rows, last=True)


def shape_model(config: ExperimentConfig) -> str:
    """What model an experiment has, in words; built without its data."""
    with torch.random.fork_rng(devices=[]):
        model = build_score_model(config, blank_statistics(image_shape(config)))
    return f"{config.model.value}, {_about(config, model)}"


def count_parameters(model: torch.nn.Module) -> int:
    """Numbers that a model learns."""
    return sum(p.numel() for p in model.parameters())


def _about(config: ExperimentConfig, model: torch.nn.Module) -> str:
    n = config.network
    orders = f", pixels in {n.orders} orders" if n.orders > 1 else ""
    known = {
        CAUSAL: f"causal energy of {n.layers} layers, {n.width} wide{orders}",
        RADIAL: f"radial network of {n.layers} layers, {n.width} wide",
        "unet": f"UNet of {n.scales} scales, {n.width} channels wide",
    }
    return f"{known.get(n.kind, f'network {n.kind}')}, {count_parameters(model):,} parameters"

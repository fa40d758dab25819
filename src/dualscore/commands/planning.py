"""What dry runs say: rows, each after the check that it reports, which raises what would stop the command."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dualscore.assemble import find_data, known_density
from dualscore.data.transfer import Address, is_remote
from dualscore.devices import find_device
from dualscore.draw_images import DrawOptions, check_images, read_images, sized
from dualscore.errors import ScoreError, TrainingError
from dualscore.evaluation import is_complete
from dualscore.evaluation.evaluate_checkpoint import costs
from dualscore.figures import check_names
from dualscore.figures.trained import Trained, read_run
from dualscore.model import ImageModel
from dualscore.model_files.exported import check_folder
from dualscore.model_files.loading import load, locate
from dualscore.pictures.walk import COMMON
from dualscore.publishing import add_evaluation, check_released
from dualscore.runs.checkpoints import read_checkpoint
from dualscore.runs.folder import Run, check_architecture
from dualscore.runs.run_status import Status
from dualscore.sampling.sample_images import check_energy, gaussian_start
from dualscore.scoring.detect_ood import RESULTS_HINT, check_sides
from dualscore.scoring.image_files import Size, check_given, decode, find
from dualscore.scoring.measure_models import MeasureOptions, wanted
from dualscore.scoring.named_model import find_models, is_code
from dualscore.scoring.scorer import DRAWS, check_level, wanted_size
from dualscore.settings.config import ExperimentConfig
from dualscore.settings.experiment import load_experiment, to_plain
from dualscore.study.run_variants import run_folder
from dualscore.study.variants import STUDIES, Study
from dualscore.telling import count_parameters, expected, shape_model
from dualscore.terminal.boxes import Row, writes
from dualscore.terminal.console import from_make
from dualscore.training.trainer import accelerator

MOST_COUNTED = 1_000_000
"""Stop counting files here: folders may be huge."""
Rows = Iterator[Row]


def train(config: ExperimentConfig, run: Run) -> Rows:
    """What training would do, from where."""
    options, status = config.trainer, Status.read(run.folder)
    step = status.step if status is not None and run.kept() else 0
    yield "start", f"goes on from step {step:,}" if step else "a new run, from step 0"
    yield "settings", run.check_same(to_plain(config))
    yield "folder", run.check_free()
    yield "data", _data(config)[0]
    yield "model", shape_model(config)
    kind = accelerator(config)
    if kind == "cuda" and torch.cuda.device_count() < options.devices:
        there = torch.cuda.device_count()
        raise TrainingError(f"trainer.devices={options.devices}: there are {there} GPUs here")
    yield (
        "devices",
        f"{options.devices} × {kind}" + (f", on {options.nodes} nodes" if options.nodes > 1 else ""),
    )
    left = max(0, options.max_steps - step)
    yield "work", f"{left:,} steps of {config.data.batch_size} images, {options.precision}"
    yield "time", expected(run.folder, left * config.data.batch_size, config)
    yield writes(run.folder, "checkpoints/", "evaluation.json", "config.yaml", "events.out.tfevents.…")


def evaluate(config: ExperimentConfig, settings: str, checkpoint: Path, output: Path) -> Rows:
    """What an evaluation would measure; `settings` are where the configuration comes from."""
    yield "settings", settings
    content = read_checkpoint(checkpoint)
    check_architecture(checkpoint, content["dualscore"]["config"], to_plain(config))
    yield "checkpoint", f"{checkpoint}, step {int(content['global_step']):,}"
    found, counts = _data(config)
    yield "data", found
    yield "device", f"{config.trainer.devices * config.trainer.nodes} × {config.trainer.accelerator}"
    yield from costs(config, counts, "test" if "test" in counts else "val")
    if is_complete(output, checkpoint):
        yield "measured", "already, as far as the same was asked for; that is not measured again"
    yield writes(output.parent, "evaluation.json", "evaluation/")


def _data(config: ExperimentConfig) -> tuple[str, dict[str, int]]:
    """An experiment's data in words, and the images of each split if they can be known without writing."""
    data = config.data
    if known_density(config) is not None:
        return f"draws its own, {data.density.value}", {}
    if is_remote(data.path):
        return f"{Address(data.path)}, elsewhere: not looked at, which would fill the cache", {}
    if from_make() and data.dataset.startswith("demo") and not Path(data.path).exists():
        return f"{data.path}: not there yet; make prepares it, in seconds", {}
    _, manifest = find_data(config)
    counts = {name: split.images for name, split in manifest.splits.items()}
    gray = ", read as gray" if data.channels < manifest.image_shape[0] else ""
    shape = "×".join(map(str, manifest.image_shape)) + gray
    training, validation = f"{counts['train']:,} training", f"{counts['val']:,} validation"
    return f"{data.path}: {training}, {validation} images, {shape}", counts


def study(study: Study) -> Rows:
    """What runs a study would make, and how long they would take."""
    out = STUDIES / study.name
    yield "study", study.purpose
    runs = [run_folder(out, variant, seed) for seed in study.seeds for variant in study.variants]
    there = sum(run.best.exists() for run in runs)
    counted = f"{len(runs)} of {len(study.variants)} variants, one after another"
    yield "runs", f"{counted}; {there} are there or begun"
    configs = [load_experiment(variant.experiment, variant.overrides) for variant in study.variants]
    for text in dict.fromkeys(_data(config)[0] for config in configs):
        yield "data", text
    if study.seconds is not None:
        minutes = f"{study.seconds * len(runs) / 60:,.0f} minutes in all"
        yield "time", f"{study.seconds:g} s a run, {minutes}, and validations and evaluations"
    else:
        yield "time", f"{study.steps:,} steps a run; how long one takes is measured first"
    yield writes(out, "table.md", "results.json", "learning.png", "learning.pdf", "runs/")


def score(path: Path, images: Sequence[Path], out: Path, options: Mapping[str, Any]) -> Rows:
    """What would be scored, by the options of scoring."""
    model, size = load(path), options["batch_size"]
    yield _model(model, path)
    count = _count(images, out)
    yield "images", _counted(count, images)
    yield "size", _size(model, images, out, options["resize"], options["normalize"])
    if options["psnr"] is not None:
        yield "d_eff", check_level(options["psnr"], model.t_max)
    yield "device", str(find_device(options["device"]))
    batches = f"{-(-count // size):,} {'batch' if count <= size else 'batches'} of at most {size}"
    yield "work", f"one energy and its gradient for each image, {batches}"
    heat = ["maps/"] if options["maps"] else []
    yield writes(out, "scores.csv", "scores.json", "failures.csv", "sheet.png", *heat)


def measure(names: Sequence[str], images: Sequence[Path], out: Path, options: MeasureOptions) -> Rows:
    """What would be measured; the user's own code is not run."""
    models = find_models([n for n in names if not is_code(n)], options.label, torch.device("cpu"))
    what = {model.name: model.what for model in models}
    for name in names:
        yield "model", f"{name}: {what.get(name, 'your own code, not run by a dry run')}"
    check_given(images, out)
    yield "images", ", ".join(map(str, images))
    size = wanted(models, images, out, options.resize)
    yield "size", f"{size.width}×{size.height}"
    yield "device", str(find_device(options.device))
    yield "work", f"up to {2 * options.strata + 2} evaluations an image, and 70 more of 128 images"
    yield writes(out, "report.json", "rows.csv", "failures.csv", "rows/")


def ood(
    path: Path, inside: Sequence[Path], outside: Sequence[Path], results: Path, options: Mapping[str, Any]
) -> Rows:
    """What would be told apart, by the options of detection."""
    model = load(path)
    yield _model(model, path)
    count = _count(inside, results)
    yield "in", _counted(count, inside)
    other = _count(outside, results, RESULTS_HINT)
    yield "out", _counted(other, outside)
    yield "sides", check_sides(inside, outside, results)
    yield "size", _size(model, inside, results, options["resize"], options["normalize"])
    for level in options["levels"]:
        yield f"{level:g} dB", check_level(level, model.t_max)
    yield "device", str(find_device(options["device"]))
    each = 1 + len(options["levels"]) * DRAWS
    yield "work", f"{each} network evaluations for each of {count + other:,} images"
    yield writes(results, "ood.csv", "ood.json", "failures.csv", "ood.png", "ood.pdf")


def draw(
    path: Path,
    images: Sequence[Path] | None,
    options: DrawOptions,
    look: Callable[[ImageModel], Row] | None = None,
    from_noise: bool = True,
) -> Rows:
    """What would be drawn, given images or nothing; `look` checks what a command has besides."""
    model = load(path)
    yield _model(model, path)
    model = sized(model, images or (), options)
    yield "draws", f"images of {check_images(model, path)}"
    if from_noise:
        gaussian_start(model)
    check_energy(model, options.method)
    yield "method", options.method.value
    if images is not None:
        given = read_images(model, images, options)
        images = given.paths
        yield "images", "; ".join([f"{len(images)}, of the right size", *given.left_out])
    if look is not None:
        yield look(model)
    yield "device", str(find_device(options.device))
    samples = options.count * (1 if images is None else len(images))
    each = f"{2 * options.steps - 1:,} network evaluations for each"
    if options.method.value == "flow":
        each = "as many network evaluations as its solver takes"
    batches = math.ceil(samples / options.batch_size)
    work = f"{samples:,} samples by {options.method.value}, in batches: {batches}; {each}"
    yield "work", work if options.count else "the mean alone, one evaluation an image"
    yield writes(options.out, "grid.png", "samples.json", "samples.npz", "samples/")


def figures(trained: Trained, only: Sequence[str], out: Path) -> Rows:
    """What figures would be drawn of which runs."""
    yield "figures", ", ".join(check_names(only))
    for name, folder in (("run", trained.folder), ("other", trained.other)):
        if folder is not None:
            config = read_run(folder, trained.overrides)
            yield name, f"{folder}: {config.name}, {config.trainer.max_steps:,} steps"
            yield _model(load(folder), folder)
    yield "work", "what was measured before is not measured again; the rest takes minutes on the demo"
    yield writes(out, "pictures (.pdf, .png) and numbers (.json, .csv)")


def export(path: Path, out: Path) -> Rows:
    """What would go into a model file."""
    model = load(path)
    yield _model(model, path)
    yield "evaluation", add_evaluation(model, locate(path))
    yield "folder", check_folder(out)
    yield writes(out, "model.safetensors", "README.md")


def convert(released: Path, images: Sequence[Path], out: Path, resize: bool, device: str) -> Rows:
    """What would be converted, and what log Z would be estimated on."""
    yield "file", check_released(released)
    model = load(released)
    yield _model(model, released)
    if images:
        count = _count(images, out)
        yield "images", _counted(count, images)
        yield "size", _size(model, images, out, resize, normalize=True)
        yield "work", f"log Z from {count:,} images: two network evaluations for each"
    yield "device", str(find_device(device))
    yield "folder", check_folder(out)
    yield writes(out, "model.safetensors", "README.md")


def _model(model: ImageModel, path: Path) -> Row:
    shape = "" if model.image_shape is None else f", images {'×'.join(map(str, model.image_shape))}"
    return "model", f"{locate(path)}: {model.provenance}; {count_parameters(model):,} parameters{shape}"


def _count(given: Sequence[Path], out: Path, hint: str = "") -> int:
    """Count image files, without reading them; `hint` as in `check_given`."""
    check_given(given, out, hint)
    count = sum(1 for _ in islice(find(given, out), MOST_COUNTED))
    if not count:
        raise ScoreError(f"{given[0]}: holds no image ({COMMON})")
    return count


def _counted(count: int, given: Sequence[Path]) -> str:
    more = " or more" if count == MOST_COUNTED else ""
    return f"{count:,}{more} image {'file' if count == 1 else 'files'} in {', '.join(map(str, given))}"


def _size(model: ImageModel, given: Sequence[Path], out: Path, resize: bool, normalize: bool) -> str:
    """The size that images must have; refuses a first one that has not."""
    size: Size = wanted_size(model, given, out, resize=resize, normalize=normalize)
    first = next(find(given, out))
    try:
        decode(first, size)
    except (ValueError, OSError) as error:
        raise ScoreError(f"{first}: the first image {error}") from error
    return f"{size.width}×{size.height}; others are {'cropped and resized' if resize else 'left out'}"

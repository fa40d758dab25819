"""What a trained model costs to use: energies, gradients, evaluation, scoring, samples."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.evaluation import evaluation_figures, make_demo
from benchmarks.gpu.jobs import Jobs, Row
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.steps import DUAL, Step, Variant, precision
from benchmarks.scoring import scoring_figures
from benchmarks.timing import side_by_side
from dualscore.assemble import blank_statistics, image_shape
from dualscore.gaussian import StationaryGaussian
from dualscore.model import ImageModel
from dualscore.sampling.sample_images import sample


def jobs(setting: Setting) -> Jobs:
    """From one network evaluation to whole commands."""
    return {
        **{f"energies, {name}": partial(energies, setting, name) for name in ("fp32", "TF32", "bf16")},
        "sampling": partial(sampling, setting),
        "scoring files": partial(scoring, setting),
        "evaluation": partial(evaluation, setting),
    }


def energies(setting: Setting, name: str) -> Row:
    """One evaluation an image, and one with both gradients."""
    step = Step(setting, Variant(DUAL))

    def forward() -> None:
        with torch.no_grad(), precision(name, setting.device):
            step.model(step.clean, step.t)

    def gradients() -> None:
        with torch.no_grad(), precision(name, setting.device):
            step.model.gradients(step.clean, step.t)

    times = side_by_side({"forward": forward, "gradients": gradients}, setting.repeats)
    return {
        "energies, images/s": step.images / times["forward"].median,
        "with both gradients, images/s": step.images / times["gradients"].median,
    }


def sampling(setting: Setting) -> Row:
    """Metropolis-adjusted Langevin steps, of random weights: the work is the same."""
    step = Step(setting, Variant(DUAL))
    shape = image_shape(step.config)
    prior = StationaryGaussian(*_statistics(shape)).to(setting.device)
    model = ImageModel(step.model, image_shape=shape, prior=prior, t_max=step.config.noise.t_max).eval()
    count, levels = (4, 4) if setting.toy else (64, 20)
    draw = partial(sample, model, count, steps=levels, batch_size=count)
    seconds = side_by_side({"sample": draw}, 2)["sample"].median
    return {
        "images": count,
        "s a level": seconds / levels,
        "s an image of 200 levels": 200 * seconds / levels / count,
    }


def _statistics(shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    blank = blank_statistics(shape)
    return blank.mean, 0.05 * blank.spectrum


def scoring(setting: Setting) -> Row:
    """Against the bare forward pass on pixels in memory."""
    config = setting.config(DUAL)
    with TemporaryDirectory(dir=setting.work) as folder:
        return dict(
            scoring_figures(Path(folder), config, 1, config.data.batch_size, workers=1 if setting.toy else 8)
        )


def evaluation(setting: Setting) -> Row:
    """Against the bare forward pass, at the demo's size."""
    with TemporaryDirectory(dir=setting.work) as folder:
        data = make_demo(Path(folder))
        return dict(evaluation_figures(Path(folder), data, 1, 4 if setting.toy else 64))

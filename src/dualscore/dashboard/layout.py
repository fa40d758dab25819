"""The layout of TensorBoard's Custom Scalars: most important first.

TensorBoard merges the layouts of all runs it shows, and draws a chart twice where two runs' charts differ.
So a chart is the same in every run that has it, and what only some runs have is in charts of its own.
"""

import re
from collections.abc import Sequence

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.plugins.custom_scalar import metadata
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)

from dualscore.dashboard.logger import level
from dualscore.settings.config import ExperimentConfig, ModelKind

SPACE, TIME = "Space loss at each noise level (= d_eff/d)", "Time loss at each noise level"
GROUP = 3
"""Noise levels in a chart where all of them would be too many to tell apart."""
GAUSSIANS = ["gaussian/stationary", "gaussian/full_covariance"]


def layout(
    config: ExperimentConfig, estimates: Sequence[str], published: Sequence[str], score_network: bool
) -> Layout:
    """A run's charts; estimates are all that an evaluation may hold, whether this run has them or not."""
    energy = config.model is ModelKind.energy
    levels = [level(decibels) for decibels in config.evaluate.psnr]
    names = ["space", *(["time"] if energy else [])]
    losses = [(f"{name} loss", f"train/{name}_loss", f"val/{name}_loss") for name in names]
    losses.insert(0, ("loss", "train/loss", "val/loss"))
    references = ["linear", *(["score_network"] if score_network else [])]
    categories = [
        *_likelihoods(estimates, published),
        _category("Losses", [_lines(*of) for of in losses]),
        _category("Denoising", [chart for name in references for chart in _grouped(*GAINS[name], levels)]),
        *([_category("Normalization", [_lines("log Z in nats", "val/log_normalizer")])] if energy else []),
        _category(SPACE, _grouped("space loss", "space_loss", levels, 1), closed=True),
        *([_category(TIME, _grouped("time loss", "time_loss", levels, 1), closed=True)] if energy else []),
        _category("Effective dimension", _grouped("d_eff", "effective_dimension", levels), closed=True),
        _category("Denoised PSNR", _grouped("dB of denoised images", "psnr", levels), closed=True),
        _category("Speed and optimiser", SPEED, closed=True),
        _category("Health", HEALTH),
    ]
    return Layout(category=categories)


def _likelihoods(estimates: Sequence[str], published: Sequence[str]) -> list[Category]:
    """Bits/dim with bands. The overview stands alone: TensorBoard shuffles charts with bands."""
    figures = ["val/bits_per_dim", "val/bound", *(f"final/{name}" for name in estimates)]
    found = [
        _category("Bits/dim: all estimates, and the Gaussians", [_bands("bits/dim", figures, GAUSSIANS)])
    ]
    if published:
        names = [f"published/{name}" for name in published]
        found.append(_category("Bits/dim: all estimates, and published figures (ImageNet64)",
                           [_bands("bits/dim of ImageNet64", figures, names)]))  # fmt: skip
    each = [
        _bands("paper's protocol: validations, evaluation", ["val/bits_per_dim", "final/paper"]),
        _bands("bound: validations, evaluation", ["val/bound", "final/bound"]),
        _bands("evaluation: dequantized, ODE", ["final/dequantized", "final/ode"]),
    ]
    return [*found, _category("Bits/dim: each estimate (bands: ± two standard errors)", each)]


def _category(title: str, charts: Sequence[Chart], closed: bool = False) -> Category:
    return Category(title=title, chart=charts, closed=closed)


def _grouped(title: str, tag: str, levels: Sequence[str], group: int = GROUP) -> list[Chart]:
    """Charts of a few noise levels each."""
    groups = [levels[i : i + group] for i in range(0, len(levels), group)]
    return [
        _lines(f"{title}, input {' / '.join(group)}", *(f"{tag}/{name}" for name in group))
        for group in groups
    ]


def layout_summary(found: Layout) -> Summary:
    """A layout as an entry of the log; TensorBoard's own function for it needs TensorFlow."""
    content = TensorProto(dtype="DT_STRING", string_val=[found.SerializeToString()])
    described = metadata.create_summary_metadata()
    value = Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, metadata=described, tensor=content)
    return Summary(value=[value])


def _lines(title: str, *tags: str, prefix: str | None = None) -> Chart:
    """A chart of tags, and of all that begin with a prefix. TensorBoard matches at the beginning only."""
    patterns = [f"{re.escape(tag)}$" for tag in tags] + ([f"{re.escape(prefix)}.+$"] if prefix else [])
    return Chart(title=title, multiline=MultilineChartContent(tag=patterns))


def _bands(title: str, tags: Sequence[str], exact: Sequence[str] = ()) -> Chart:
    """A chart of figures with their bands, and of figures that have none."""
    edges = [(tag, f"{tag}_low", f"{tag}_high") for tag in tags] + [(tag, tag, tag) for tag in exact]
    series = [MarginChartContent.Series(value=v, lower=low, upper=high) for v, low, high in edges]
    return Chart(title=title, margin=MarginChartContent(series=series))


GAINS = {
    "linear": ("dB above the best linear denoiser", "psnr_gain_linear"),
    "score_network": ("dB above the score network", "psnr_gain_score_network"),
}
SPEED = [
    _lines("images a second", "train/images_per_second"),
    _lines("share of the time spent waiting for images", "train/stall"),
    _lines("learning rate", "train/learning_rate"),
    _lines("largest gradient norm since the entry before", "train/largest_gradient_norm"),
    _lines("minutes of training", "train/minutes"),
]
HEALTH = [
    _lines("events so far", prefix="events/"),
    _lines("steps left out and images replaced", "train/skipped_steps", "data/skipped_images"),
]

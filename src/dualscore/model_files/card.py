"""The page that stands beside a model's weights: what it is, how good it is, how to use it."""

from collections.abc import Sequence
from typing import Any

from dualscore.energy import EnergyModel, normalized_by_form
from dualscore.errors import CheckpointError
from dualscore.measuring.row_figures import estimate_of
from dualscore.model import ImageModel

FIGURES = {
    "paper": "paper's protocol: an estimate, no bound",
    "dequantized": "dequantized: a bound, if the energy is normalized",
    "bound": "variational upper bound",
    "ode": "probability-flow ODE",
}  # names of estimates, as the card explains them
UNLICENSED = (
    "It was not said under which terms these weights may be used: ask whoever made them. "
    "The code that reads them, dualscore, is under BSD-3-Clause."
)
LIMITS = (
    "The method is that of Guth, Kadkhodaie, Simoncelli 2025, arXiv 2506.05310. Log p says how simple an "
    "image is to a model of its training images, not how good, how typical or how real; simple images are "
    "the most probable ones. Of images unlike those of training, and at noise levels outside of training, "
    "nothing is known but what the tables below say.\n\n"
)
CARD = """\
# {name}

{facts}

`pip install` the dualscore package (or `make install` in its repository), then:

```python
import dualscore

model = dualscore.load("{folder}")  # this folder, or model.safetensors
{calls}
model.denoise(images, 0.01)  # the posterior mean of the image, given it with such noise
```

## Images, and limits

8-bit images{size}, as k/255{gray}. `dualscore score` reads, crops and averages files in that way.

{limits}## Evaluation

{measured}

## Licence

{licence}
"""


def card(document: dict[str, Any], model: ImageModel, folder: str) -> str:
    """Write the page, in Markdown, of what a model file holds; its example calls the model `folder`.

    A CheckpointError says that the evaluation in the document is not one.
    """
    energy, shape = isinstance(model.score_model, EnergyModel), model.image_shape
    sides = (shape[0], "H", "W") if shape and model.any_size else shape or "CHW"
    images = f"# images: pixels in [0, 1], shape (B, {', '.join(map(str, sides))})"
    calls = [images]
    if model.log_normalizer is not None:
        calls = [f"model.bits_per_dim(images)  {images}", "model.log_prob(images)  # nats"]
    if energy:
        calls.append("model.energy(images, 0.01)  # U(y, t) at noise variance t = 0.01, in pixel²")
    try:
        measured = _measured(document["evaluation"], model)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{document['name']}: its evaluation cannot be shown: {error!r:.100}"
        ) from error
    return CARD.format(
        name=document["name"],
        facts=_table(["", ""], list(_facts(document, model, energy).items())),
        folder=folder,
        calls="\n".join(calls),
        size=_size(model),
        gray="; gray is the ITU-R 601 luma of 8-bit colour, rounded" if shape and shape[0] == 1 else "",
        limits=LIMITS if energy else "",
        measured="\n\n".join(measured),
        licence=document["licence"] or UNLICENSED,
    )


def _size(model: ImageModel) -> str:
    if model.any_size:
        return " of any size"
    shape = model.image_shape
    return f" of exactly {shape[2]}×{shape[1]} pixels" if shape else ""


def _facts(document: dict[str, Any], model: ImageModel, energy: bool) -> dict[str, str]:
    weights, log_z = list(model.parameters()), document["log_normalizer"]
    kind = "energy U(y, t) = −log p(y | t)" if energy else "denoiser, without an energy or a likelihood"
    shape = "×".join(map(str, model.image_shape)) if model.image_shape else "any its network takes"
    if model.any_size and model.image_shape:
        shape = f"{model.image_shape[0]} × any size"
    rows = {
        "model": kind,
        "images (channels × height × width)": shape,
        "parameters": f"{sum(p.numel() for p in weights):,}, {str(weights[0].dtype).removeprefix('torch.')}",
    }
    if energy:
        known = "not known: `model.normalize(images)` estimates it; until then there are energies only"
        if log_z is not None:
            error = "" if log_z["stderr"] is None else f" ± {log_z['stderr']:.3f}"
            known = f"{log_z['value']:.3f}{error} nats, {log_z['how']}"
        mass = "not measured: whether the energy is normalized is not known"
        if normalized_by_form(model.score_model):
            mass = "one, by the energy's form"
        if model.mass is not None:
            mass = f"{model.mass}; a normalized density has e^0"
        rows |= {"log Z": known, "mass of exp(−U − log Z)": mass}
    written = ", ".join(f"{k} {v}" for k, v in document["written_by"].items())
    return {**rows, **document["facts"], "written by": written}


def _measured(report: dict[str, Any] | None, model: ImageModel) -> list[str]:
    if report is None:
        energies = None if model.origin is None else model.origin.energies
        if energies is None:
            return ["Not evaluated."]
        count = len(energies)
        return [f"Not evaluated. The file holds the energies of {count:,} images, to rank others among."]
    figures, data = report["bits_per_dim"], report["dataset"]
    rows = [(FIGURES.get(name, str(name)), figure) for name, figure in figures.items()]
    if train := report.get("train"):
        rows.append(("paper's protocol, training images", train))
    estimates = [(label, str(estimate_of(figure)), f"{figure['images']:,}") for label, figure in rows]
    yardsticks = [
        (f"{y['label']} (not this model)", f"{y['value']:.3f}", f"{y['images']:,}")
        for y in report.get("yardsticks", {}).values()
        if y["value"] is not None
    ]
    levels = [
        (f"{level['psnr_in']:.0f}", f"{level['psnr_out']:.2f}", f"{level['effective_dimension']:,.1f}")
        for level in report["noise_levels"]
    ]
    split = {"val": "validation"}.get(data["split"], data["split"])
    over = "photographs" if any(figure.get("photographs") for figure in figures.values()) else "images"
    return [
        f"On the {split} images of: {data['release']} ({data['colour']}); ± is one standard error over "
        f"{over}. Figures of other data sets, or of other releases of this one, cannot be compared.",
        _table(["bits/dim", "value", "images"], [*estimates, *yardsticks]),
        f"**Verdict** of the checks: {report['verdict']}",
        _table(["noise, dB", "denoised, dB", "effective dimension"], levels),
    ]


def _table(head: list[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

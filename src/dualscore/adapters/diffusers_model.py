"""Pixel models of diffusers: a network with the scheduler that it was trained with, or the folder of both.

Of a scheduler only what training had is used: ᾱ of its steps and what the network predicts, or the
deviations between which it was trained. How it steps through them in sampling does not matter here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualscore.denoisers import GivenDenoiser, of_edm, of_flow, of_pixels, of_steps
from dualscore.errors import ModelError, did_you_mean
from dualscore.files.plain_text import one_line
from dualscore.files.typed_json import read_json

NETWORKS = ("UNet2DModel", "DiTTransformer2DModel")
"""Networks of pixels, told a step and perhaps a class."""
STEPS = (
    "DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "PNDM", "DEISMultistep", "DPMSolverMultistep",
    "DPMSolverSinglestep", "DPMSolverSDE", "UniPCMultistep", "HeunDiscrete", "KDPM2Discrete",
    "KDPM2AncestralDiscrete", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "IPNDM", "SASolver",
)  # fmt: skip
FLOWS = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")
EDM = ("EDMEuler", "EDMDPMSolverMultistep")
SCORES = ("ScoreSdeVe",)
VARIANT = re.compile(
    r"diffusion_pytorch_model(?:\.safetensors\.index)?\.(?!safetensors)(\w+?)(?:-\d+-of-\d+)?\."
)
PICKLED = "its weights are a pickle, which could run code: save it once more with safe_serialization=True"


@dataclass(frozen=True)
class DiffusersModel:
    """A model of a folder: pass it to `of_diffusers`, with its labels where it needs some."""

    network: Any
    scheduler: Any
    channels: int
    size: tuple[int, int] | None  # (H, W); None where any size goes
    classes: int  # 0 of a network that is told none


def of_diffusers(
    model: Any,  # a pipeline, a network or a DiffusersModel
    scheduler: Any = None,  # one of diffusers'
    *,
    labels: int | Tensor | None = None,
) -> GivenDenoiser:
    """A pixel model of diffusers as a denoiser of pixels in [0, 1].

    Args:
        model: a pipeline such as `DDPMPipeline`, a network with its scheduler, or what `read_diffusers` gave.
        scheduler: of a network: the one that it was trained with.
        labels: the class, one for all images or one of each image of a batch, (B,), if it needs one.

    Returns:
        The denoiser, known at the noise levels of training; asked at the nearest step where it knows steps.

    Raises:
        ModelError: if it is no model of pixels, or of a kind whose conventions are not known here.
    """
    network = model
    if scheduler is None:
        parts = (getattr(model, part, None) for part in ("network", "unet", "transformer"))
        network = next((part for part in parts if part is not None), model)
        scheduler = getattr(model, "scheduler", None)
    _refuse_parts(getattr(model, "components", {}))
    if scheduler is None:
        raise ModelError("a network alone doesn't say what it predicts: give the scheduler of its training")
    return _of_kind(network, scheduler, _ask(network, labels, _classes(network)))


def read_diffusers(folder: str | Path) -> DiffusersModel:
    """Read a folder that a pipeline of diffusers was saved to, without network, pickles or its own code.

    Args:
        folder: with model_index.json, or with a network's config.json beside scheduler_config.json.

    Returns:
        The network on the CPU in single precision, its scheduler, and the images that it is for.

    Raises:
        ModelError: as `of_diffusers`, and if diffusers is not installed or the folder holds something else.
    """
    folder = Path(folder)
    diffusers = _library()
    named: dict[str, Any] = read_json(folder / "model_index.json")
    if named:
        _refuse_parts(named)
    places = {part: folder / part if (folder / part).is_dir() else folder for part in named}
    part = next((p for p in ("unet", "transformer", "model") if p in places), "")
    place, scheduled = places.get(part, folder), places.get("scheduler", folder)
    kind, steps = _class_name(place / "config.json"), _class_name(scheduled / "scheduler_config.json")
    if kind not in NETWORKS:
        raise ModelError(f"{place}: a {kind}; pixel networks that are read here are {' and '.join(NETWORKS)}")
    _scheduler_kind(steps)
    variant = _variant(place)
    try:
        network, loaded = getattr(diffusers, kind).from_pretrained(
            place, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False,
            torch_dtype=torch.float32, variant=variant, output_loading_info=True,
        )  # fmt: skip
        scheduler = getattr(diffusers, steps).from_pretrained(scheduled, local_files_only=True)
    except Exception as error:  # whatever a damaged folder makes another library raise
        raise ModelError(f"{folder}: diffusers cannot read it: {one_line(error):.200}") from error
    for what, names in loaded.items():
        if names:
            raise ModelError(f"{place}: weights do not fit the network: {what} {one_line(names):.120}")
    network = network.eval().requires_grad_(False)
    of_diffusers(network, scheduler, labels=0 if _classes(network) else None)  # refuses what it must
    return DiffusersModel(
        network, scheduler, int(network.config.in_channels), _size(network), _classes(network)
    )


def is_diffusers(folder: Path) -> bool:
    """Whether a folder looks like one that diffusers saved."""
    names = ("model_index.json", "scheduler_config.json")
    return any((folder / name).is_file() for name in names) or "_diffusers_version" in read_json(
        folder / "config.json"
    )


def _of_kind(network: Any, scheduler: Any, ask: Callable[[Tensor, Tensor], Tensor]) -> GivenDenoiser:
    """The denoiser by the conventions of a scheduler."""
    kind, config = _scheduler_kind(type(scheduler).__name__), scheduler.config
    predicted = config.get("prediction_type", "epsilon")
    centres = bool(network.config.get("center_input_sample", False))
    if centres and kind not in SCORES:
        raise ModelError("center_input_sample: the network doubles what it is given; wrap it yourself")
    if kind in SCORES:

        def score(noisy: Tensor, deviation: Tensor) -> Tensor:
            return noisy + deviation.square()[:, None, None, None] * ask(noisy, deviation)

        # Its pipeline's images are in [0, 1]; a network doubles them itself where it is so configured.
        ends = float(config.sigma_min) ** 2, float(config.sigma_max) ** 2
        return of_pixels(score, t_range=ends, level="deviation")
    if kind in EDM:
        data = float(config.sigma_data)
        if predicted not in ("epsilon", "v_prediction"):
            raise ModelError(f"prediction_type={predicted!r:.80} of an EDM scheduler is not known here")
        sign = 1.0 if predicted == "epsilon" else -1.0

        def denoise(noisy: Tensor, deviation: Tensor) -> Tensor:
            s = deviation[:, None, None, None]
            norm = (s.square() + data**2).rsqrt()
            given = ask(norm * noisy, 0.25 * deviation.log())
            return (data * norm) ** 2 * noisy + sign * data * s * norm * given

        return of_edm(denoise, deviations=(float(config.sigma_min), float(config.sigma_max)))
    steps = int(config.num_train_timesteps)
    if kind in FLOWS or predicted == "flow_prediction":
        if config.get("invert_sigmas", False):
            raise ModelError("invert_sigmas: this flow's time runs the other way; use denoisers.of_flow")
        return of_flow(lambda mixed, time: ask(mixed, steps * time), times=(1.0 / steps, 1.0 - 1.0 / steps))
    if config.get("timestep_type", "discrete") != "discrete":
        raise ModelError(f"timestep_type={config.timestep_type!r:.80}: only discrete steps are known here")
    if predicted not in ("epsilon", "v_prediction", "sample"):
        raise ModelError(f"prediction_type={predicted!r:.80} is not known here; wrap the network yourself")
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if cumulative is None:
        raise ModelError(f"{kind}Scheduler has no alphas_cumprod: use the scheduler of the training")
    # A schedule that ends without any signal: there is no image at its last step.
    cumulative = cumulative.double()[cumulative > 1e-7]
    return of_steps(ask, cumulative, prediction=predicted)


def _ask(network: Any, labels: int | Tensor | None, classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """What a network gives for noisy images and steps, with labels."""
    _refuse_labels(labels, classes)
    channels, out = int(network.config.in_channels), int(network.config.out_channels or 0)
    if channels not in (1, 3):
        raise ModelError(
            f"the network is of {channels} channels, no pixels: a latent model has no likelihood of pixels"
        )
    if out not in (0, channels, 2 * channels):
        raise ModelError(f"the network gives {out} channels for {channels}: not a prediction of the image")

    def ask(images: Tensor, steps: Tensor) -> Tensor:
        told = {}
        if labels is not None:
            classes_of = torch.as_tensor(labels, device=images.device)
            if classes_of.shape not in ((), (1,), (len(images),)):
                raise ModelError(
                    f"{len(classes_of)} labels for {len(images)} images: hand measure a function of a "
                    "batch's labels, and labels= of all images"
                )
            told["class_labels"] = classes_of.expand(len(images))
        # In its own precision, and as in evaluation; nothing of it is changed.
        weights, training = next(network.parameters(), images), network.training
        network.eval()
        try:
            given: Tensor = network(images.to(weights.dtype), steps, **told).sample.to(images)
        finally:
            network.train(training)
        return given[:, :channels] if given.shape[1] == 2 * channels else given

    return ask


def _refuse_labels(labels: int | Tensor | None, classes: int) -> None:
    """Refuse labels that do not belong to a network's classes: ModelError."""
    if classes and labels is None:
        raise ModelError(f"the network is told a class, one of {classes:,}: say which with labels")
    if not classes and labels is not None:
        raise ModelError("labels are given, but the network takes no class")
    if isinstance(labels, Tensor) and (labels.is_floating_point() or labels.ndim > 1):
        raise ModelError(f"labels must be whole numbers, (B,), got {tuple(labels.shape)} {labels.dtype}")
    if labels is not None:
        low, high = (int(end) for end in torch.as_tensor(labels).aminmax())
        if low < 0 or high >= classes:
            raise ModelError(f"label {low if low < 0 else high}: there are {classes:,} classes, from 0")


def _size(network: Any) -> tuple[int, int] | None:
    """(H, W) of its images, None where any goes."""
    size = network.config.sample_size
    sides = (size, size) if isinstance(size, int) else size
    if sides is None:
        return None
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(type(s) is int for s in sides):
        raise ModelError(f"sample_size={size!r:.80}: must be a whole number, or two: height and width")
    return sides[0], sides[1]


def _variant(place: Path) -> str | None:
    """The variant, as fp16, that weights are saved in; ModelError unless they are safetensors alone."""
    names = [path.name for path in place.iterdir() if path.is_file()]
    weights = {name for name in names if name.endswith(".safetensors")}
    indexes = {name for name in names if ".safetensors.index" in name}
    if not weights:
        pickled = any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names)
        raise ModelError(f"{place}: {PICKLED if pickled else 'holds no weights'}")
    for name in indexes:
        parts = read_json(place / name).get("weight_map")
        if not isinstance(parts, dict) or not weights >= {str(part) for part in parts.values()}:
            raise ModelError(f"{place / name}: names parts that are no safetensors files beside it")
    plain = {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"}
    if plain & (weights | indexes):
        return None
    kinds = {match[1] for name in weights | indexes if (match := VARIANT.match(name))}
    return kinds.pop() if len(kinds) == 1 else None


def _classes(network: Any) -> int:
    """How many classes a network is told one of, 0 of none; the one that stands for none counts too."""
    config = network.config
    if config.get("class_embed_type") not in (None, "timestep", "identity"):
        raise ModelError(f"class_embed_type={config.class_embed_type!r:.80} is not known here")
    if config.get("class_embed_type") is not None:
        raise ModelError("the network is told more than a class of each image: wrap it yourself")
    if (count := config.get("num_class_embeds")) is not None:
        return int(count)
    # A DiT has one more, which stands for no class.
    return int(count) + 1 if (count := config.get("num_embeds_ada_norm")) is not None else 0


def _refuse_parts(named: dict[str, Any]) -> None:
    """Refuse a pipeline that holds more than a network of pixels: ModelError with the way out."""
    parts = {
        name: part
        for name, part in named.items()
        if not name.startswith("_") and part not in (None, [None, None])
    }
    if any(name.startswith(("vae", "vqvae", "movq", "vqgan")) for name in parts):
        raise ModelError(
            "a latent model: it has no likelihood of pixels, because what its decoder leaves out is not "
            "counted by anything"
        )
    if any("text" in name or "token" in name or "prompt" in name for name in parts):
        raise ModelError("told a text: fix the text, and wrap the network yourself (dualscore.denoisers)")
    known = {"unet", "transformer", "model", "scheduler", "id2label", "safety_checker", "feature_extractor"}
    for name, part in parts.items():
        if isinstance(part, list) and name in known and part[0] not in ("diffusers", None):
            raise ModelError(f"{name} is of {part[0]!s:.80}, whose code is not run: use file.py:name")
        if isinstance(part, list) and name not in known:
            raise ModelError(f"a pipeline with {name!r:.80} is not known here; wrap its network yourself")


def _scheduler_kind(name: str) -> str:
    kind = name.removesuffix("Scheduler")
    known = [*STEPS, *FLOWS, *EDM, *SCORES]
    if kind not in known or kind == name:
        raise ModelError(
            f"{name:.80} is not known here; {did_you_mean(kind, known)}a scheduler of the training is wanted "
            "(DDPM, DDIM, EDMEuler, FlowMatchEulerDiscrete, …). A distilled or consistency model gives no "
            "posterior mean"
        )
    return kind


def _class_name(path: Path) -> str:
    if not path.is_file():
        raise ModelError(
            f"{path.parent}: holds no {path.name}; wanted is a folder that a pipeline was saved to"
        )
    return str(read_json(path).get("_class_name", "model without a name"))


def _library() -> Any:  # a module
    try:
        import diffusers
    except ImportError as error:
        raise ModelError("diffusers is needed for its models: pip install 'dualscore[diffusers]'") from error
    return diffusers

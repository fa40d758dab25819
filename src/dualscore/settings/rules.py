"""Which values of a configuration are impossible, alone or together."""

from dataclasses import fields, is_dataclass

from dualscore.files.plain_text import NO_TEXT, is_text
from dualscore.settings.config import (
    CAUSAL,
    RADIAL,
    VECTORS,
    Anchor,
    Best,
    EnergyConfig,
    ExperimentConfig,
    Half,
    KnownDensity,
    ModelKind,
    ResidualInput,
    Schedule,
)

HALF_STEP_SQUARED = (0.5 / 255) ** 2  # said here too, so that reading an experiment does not wait for torch


def _contradictions(c: ExperimentConfig) -> list[tuple[str, str]]:
    """Pairs of key and reason for values that do not go together."""
    e, world = c.energy, c.trainer.devices * c.trainer.nodes
    plain = EnergyConfig()
    coarsest = 2**c.network.scales
    steps, every = c.trainer.max_steps, c.trainer.validate_every
    unfinished = steps > every and steps % every != 0
    known = c.data.density is not KnownDensity.none
    radial, unet = c.network.kind == RADIAL, c.network.kind == "unet"
    causal = c.network.kind == CAUSAL
    alone = radial or causal
    crops = c.data.crops
    rules = [
        (c.noise.t_min >= c.noise.t_max, "noise.t_min", f"must be below noise.t_max={c.noise.t_max:g}"),
        (c.data.quantized and c.noise.t_max <= HALF_STEP_SQUARED, "noise.t_max",
         f"must exceed (half an 8-bit step)² = {HALF_STEP_SQUARED:.2g}, where the bound begins"),
        (not is_text(c.data.path), "data.path", NO_TEXT),
        (not is_text(c.data.cache), "data.cache", NO_TEXT),
        (not is_text(c.data.dataset), "data.dataset", NO_TEXT),
        (not known and not c.data.path, "data.path", "is required (or data.density)"),
        (not known and not c.data.dataset, "data.dataset", "is required (or data.density)"),
        (not known and not c.data.quantized and not c.data.mean_free, "data.quantized",
         "false needs data.density or data.mean_free: shards are 8-bit"),
        (c.data.mean_free and (known or c.data.quantized or c.data.channels != 1 or not causal),
         "data.mean_free", "is of shards: data.quantized=false data.channels=1 network.kind=causal"),
        (c.data.mean_free and c.data.flip, "data.flip",
         "must be false with data.mean_free: vectors have no sides"),
        (c.data.mean_free and c.evaluate.mirror and c.network.orders == 1, "evaluate.mirror",
         "needs network.orders above 1 with data.mean_free: vectors have no mirror image"),
        (known and c.data.images > 0, "data.images", "needs shards: data.density draws images without end"),
        (c.data.half is not Half.none and c.data.images == 0, "data.half",
         "needs data.images: how many from that end"),
        (not c.data.quantized and c.data.dequantize, "data.dequantize", "needs data.quantized=true"),
        (c.data.density in VECTORS and (c.data.quantized or c.data.channels != 1), "data.density",
         f"{c.data.density.value} is of vectors: data.quantized=false data.channels=1"),
        (c.data.density in VECTORS and not radial, "network.kind", "must be radial for vectors"),
        (radial and c.data.density not in VECTORS, "network.kind",
         "radial needs data.density=scale_mixture or mode_mixture"),
        (alone and (e != plain or c.model is ModelKind.denoiser), "network.kind",
         f"{c.network.kind} is an energy by itself: leave model and energy as they are"),
        (causal and c.data.density in VECTORS, "network.kind", "causal is of images, not of vectors"),
        (c.network.orders > 1 and not causal, "network.orders", "needs network.kind=causal"),
        (c.objective.likelihood_weight > 0 and not causal, "objective.likelihood_weight",
         "needs network.kind=causal: of an energy that is not normalized it would lower U without end"),
        (c.objective.likelihood_weight > 0 and c.objective.time_weight == 0, "objective.time_weight",
         "must be above 0 with objective.likelihood_weight: at 0 the image gradient is all that is computed"),
        (c.objective.likelihood_weight > 0 and c.trainer.best is Best.loss, "trainer.best",
         "must be bound with objective.likelihood_weight: the validation loss leaves the likelihood out"),
        (c.objective.likelihood_steps > 0 and not causal, "objective.likelihood_steps",
         "needs network.kind=causal, whose energy is normalized"),
        (unet and (c.data.size % coarsest != 0 or c.data.size == coarsest), "network.scales",
         f"the image side, data.size={c.data.size}, must be a multiple of 2^scales={coarsest}, "
         "twice it or more"),
        (c.data.batch_size % c.data.streams != 0, "data.batch_size",
         f"{c.data.batch_size} must be a multiple of data.streams={c.data.streams}"),
        (bool(crops) and (known or c.data.mean_free or not causal), "data.crops",
         "is of shards of images, and network.kind=causal, whose energy has no size"),
        (bool(crops) and max(crops, default=0) > c.data.size, "data.crops",
         f"must not exceed data.size={c.data.size}, which they are cut from"),
        (any(c.data.batch_size * min(crops) ** 2 % (c.data.streams * side**2) for side in crops),
         "data.crops", f"data.batch_size={c.data.batch_size} times (smallest/side)² must be a multiple of "
         f"data.streams={c.data.streams}, for each side"),
        (bool(crops) and c.trainer.accumulate > 1, "trainer.accumulate", "must be 1 with data.crops"),
        (c.data.streams % world != 0, "data.streams",
         f"{c.data.streams} must be a multiple of the {world} devices (trainer.devices × trainer.nodes)"),
        (c.data.batch_size % (world * c.trainer.accumulate) != 0, "trainer.accumulate",
         f"{c.trainer.accumulate} must divide a device's batch, {c.data.batch_size // world}"),
        (e.fading and e.anchor is Anchor.none, "energy.fading",
         "needs energy.anchor: nothing else remains at large t"),
        (e.phase and not c.data.quantized, "energy.phase", "needs data.quantized=true: it is of grey levels"),
        (e.offset and c.objective.time_weight == 0, "energy.offset",
         "cannot be learned with objective.time_weight=0: no image gradient sees it"),
        (c.model is ModelKind.denoiser and c.objective.level_weight > 0, "objective.level_weight",
         "needs an energy, which a denoiser has not"),
        (e.sizes and e.residual_input is ResidualInput.raw, "energy.sizes",
         "needs energy.residual_input=whitened, scaled or both: sizes are of what the network sees"),
        (c.model is ModelKind.denoiser and e != plain, "energy", "a denoiser has no energy to configure"),
        (c.optim.schedule is Schedule.cosine and c.optim.final_lr > c.optim.lr, "optim.final_lr",
         f"must not exceed optim.lr={c.optim.lr:g}"),
        (c.optim.warmup_steps >= c.trainer.max_steps, "optim.warmup_steps",
         f"{c.optim.warmup_steps} must be below trainer.max_steps={c.trainer.max_steps}; set both"),
        (unfinished, "trainer.max_steps", f"{steps} must be a multiple of trainer.validate_every={every} "
         "(or smaller), so that the last weights are measured and kept"),
    ]  # fmt: skip
    return [(key, reason) for broken, key, reason in rules if broken]


def problems(config: ExperimentConfig) -> list[tuple[str, str]]:
    """Find impossible values: pairs of key and reason, none if all is well."""
    declared = []
    for top in fields(config):
        value = getattr(config, top.name)
        if is_dataclass(value):
            declared += [(f"{top.name}.{f.name}", f, getattr(value, f.name)) for f in fields(value)]
        else:
            declared.append((top.name, top, value))
    # Before any check: the largest that tensors count with, and floats hold.
    huge = [(key, value) for key, _, value in declared if isinstance(value, int) and value >= 2**63]
    if huge:
        return [(key, f"must be below 2^63, not {value!r:.40}") for key, value in huge]
    checks = [(key, field.metadata.get("check"), value) for key, field, value in declared]
    found = [
        (key, f"{check[1]}, not {value!r}") for key, check, value in checks if check and not check[0](value)
    ]
    return found or _contradictions(config)

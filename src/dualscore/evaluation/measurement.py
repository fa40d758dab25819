"""The estimators and checks in turn; after each, evaluation.json holds it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dualscore.config import Estimator, ExperimentConfig, KnownDensity
from dualscore.data.base import ImageDataModule
from dualscore.energy import EnergyModel
from dualscore.evaluation import figures, plan
from dualscore.evaluation.bound import Grid, measure_bound
from dualscore.evaluation.report import print_figure, write_report
from dualscore.evaluation.run import Session
from dualscore.evaluation.stages import Stage, strata
from dualscore.evaluation.store import Rows, joined
from dualscore.likelihood import Estimate, bits, bits_per_dim, dequantized_bits_per_dim
from dualscore.likelihood import consistency as identities


class Measurement:
    """Fills an evaluation's report.

    Args:
        config: the experiment.
        session: measures stages.
        report: what is filled; `dimension` and `bits_per_dim` are there already.
        output: evaluation.json, written after each; None to write nothing on the way.
    """

    def __init__(
        self, config: ExperimentConfig, session: Session, report: dict[str, Any], output: Path | None
    ) -> None:
        self.config, self.session, self.report, self.output = config, session, report, output
        self.options = config.evaluate
        self.datamodule: ImageDataModule = session.datamodule
        self.dimension: int = report["dimension"]
        self.t_min, self.t_max = session.subject.t_range
        self.grid = Grid(self.t_min, self.t_max, self.options.strata)
        self.large = plan.reported_variances(session.subject, self.dimension)
        self.entropy = float(session.subject.prior.entropy(self.t_max))
        self.is_energy = isinstance(session.subject.model, EnergyModel)
        self.rows: dict[str, Rows] = {}
        self.per_image = figures.PerImage()
        self.log_z: Estimate | None = None
        self.shared: Estimate | None = None

    def all(self) -> None:
        """Measure everything that was asked for."""
        wanted = set(self.options.estimators)
        stages = plan.simple_stages(
            self.options,
            self.datamodule.counts,
            is_energy=self.is_energy,
            quantized=self.config.data.quantized,
            known=self.session.subject.density is not None,
            large=self.large,
        )
        steps: list[tuple[str, Callable[[dict[str, Stage]], None]]] = [
            ("paper", self._paper),
            ("dequantized", self._dequantized),
            ("noise_levels", self._levels),
        ]
        for name in ("truth", "normalizer"):
            if name in stages:
                self.rows[name] = self.session.run(stages[name])
        if "normalizer" in self.rows:
            self.log_z = figures.normalizer(self.rows["normalizer"], self.dimension, self.entropy)
            self.shared = bits(self.log_z, self.dimension)
            self.report["log_normalizer"] = self.log_z.value
        for name, step in steps:
            if name in stages:
                step(stages)
        if wanted & {Estimator.bound, Estimator.checks}:
            self._strata(Estimator.bound in wanted)
        if "ode" in stages:
            self._ode(stages)
        self._truth()
        self._checks()

    def _tell(self, name: str, figure: figures.Figure) -> None:
        self.report["bits_per_dim"][name] = figure
        self._write()
        print_figure(name, figure, self.session.console)

    def _write(self) -> None:
        if self.session.fabric.is_global_zero and self.output is not None:
            write_report(self.report, self.output)

    def _paper(self, stages: dict[str, Stage]) -> None:
        for split, prefix in (("val", ""), ("train", "train_")):
            clean = self.session.run(stages[f"{prefix}paper"])
            noisy = self.rows.get(f"{prefix}normalizer") or self.session.run(stages[f"{prefix}normalizer"])
            log_z = figures.normalizer(noisy, self.dimension, self.entropy)
            figure = figures.paper_figure(clean, noisy, log_z, self.dimension)
            if split == "train":
                self.report["train"] = figure
                self._write()
            else:
                self.rows["paper"] = clean
                per_image = bits_per_dim(clean["energy"], self.dimension)
                self.per_image.add("paper", clean["position"], per_image, self.shared)
                self._tell("paper", figure)

    def _dequantized(self, stages: dict[str, Stage]) -> None:
        rows = self.rows["dequantized"] = self.session.run(stages["dequantized"])
        assert self.shared is not None
        per_image = dequantized_bits_per_dim(rows["energy"].mean(dim=1), self.dimension)
        self.per_image.add("dequantized", rows["position"], per_image, self.shared)
        figure = figures.dequantized_figure(per_image, rows, self.rows["normalizer"], self.shared)
        self._tell("dequantized", figure)

    def _levels(self, stages: dict[str, Stage]) -> None:
        rows = self.rows["noise_levels"] = self.session.run(stages["noise_levels"])
        variances = plan.levels(self.options)
        levels = figures.level_figures(rows, variances, self.dimension)
        self.report["noise_levels"] = [asdict(level) for level in levels]
        self._write()

    def _checked(self) -> bool:
        return self.is_energy and Estimator.checks in self.options.estimators

    def _strata(self, bound: bool) -> None:
        grid = self.grid
        count = plan.subset(self.options, self.datamodule.counts)
        as_trained = self.config.data.dequantize
        shared = None
        if self._checked():
            everywhere = (0, grid.number)
            rows = self.rows["strata"] = self.session.run(
                strata("val", count, grid.number, everywhere, "strata", as_trained=as_trained)
            )
            shared = None if as_trained else rows
        if bound:
            measured = measure_bound(self.session.run, grid, count, self.dimension, shared)
            self.per_image.add("bound", measured.position, bits(measured.terms.total, self.dimension))
            self._tell("bound", figures.bound_figure(measured, self.dimension))

    def _density_bits(self, energy: Tensor) -> Tensor:
        """Bits/dim of normalised energies of images with a density: dequantised where they are 8-bit."""
        convert = dequantized_bits_per_dim if self.config.data.quantized else bits_per_dim
        return convert(energy, self.dimension)

    def _ode(self, stages: dict[str, Stage]) -> None:
        rows = self.session.run(stages["ode"])
        per_image = self._density_bits(rows["energy"])
        self.per_image.add("ode", rows["position"], per_image)
        self._tell("ode", figures.ode_figure(per_image, rows))

    def _truth(self) -> None:
        if "truth" not in self.rows:
            return
        rows, truth = self.rows["truth"], figures.PerImage.TRUTH
        per_image = self._density_bits(rows["energy"])
        self.per_image.add(truth, rows["position"], per_image)
        self.report["truth"] = figures.truth_figures(
            per_image, self.rows["noise_levels"], self.log_z, self.dimension
        )
        clean, density = self.rows.get("paper"), self.session.subject.density
        if (
            clean is not None
            and density is not None
            and self.config.data.density is KnownDensity.mode_mixture
        ):
            weights = density.log_weights.exp().cpu()
            self.report["truth"]["component_weights"] = figures.component_weights(rows, clean, weights)
        for name, figure in self.report["bits_per_dim"].items():
            figure["above_truth"] = figures.plain(self.per_image.difference(name, truth))

    def _checks(self) -> None:
        gaps = self.per_image.gaps()
        if self._checked():
            gaps += self._identities()
        self.report["checks"] = [
            {"check": gap.check, "where": gap.where, **figures.plain(gap.gap), "consistent": gap.consistent}
            for gap in gaps
        ]
        self.report["consistent"] = all(gap.consistent for gap in gaps)
        self.report["verdict"] = identities.verdict(gaps)

    def _identities(self) -> list[identities.Gap]:
        levels, inside = self.rows["noise_levels"], self.rows["strata"]
        variances = plan.levels(self.options)
        found = []
        # Below t_min and above t_max the model was not trained.
        known = [j for j, t in enumerate(variances) if 0.999 * self.t_min <= t <= 1.001 * self.t_max]
        if known:
            span, there = slice(known[0], known[-1] + 1), variances[known[0] : known[-1] + 1]
            measured = (inside["variance"], inside["space"], self.grid.width, self.dimension)
            found += identities.energy_rise_gaps(levels["energy"][:, span], there, *measured)
            found += identities.heat_gaps(levels["heat"][:, span], there)
            if (clean := self._energy_without_noise(levels)) is not None:
                lowest = levels["energy"][:, known[0]]
                found.append(identities.first_rise_gap(clean, lowest, there[0], *measured))
        rows = self.rows["normalizer"]
        entropies = [float(self.session.subject.prior.entropy(t)) for t in self.large]
        log_z = identities.log_normalizers(rows["energy"], rows["noise_square"], entropies, self.dimension)
        return found + identities.normalizer_gaps(log_z, self.large, self.dimension)

    def _energy_without_noise(self, levels: Rows) -> Tensor | None:
        """U at t = 0 of the levels' images as they were trained on, if it was measured."""
        dequantize = self.config.data.dequantize
        clean = self.rows.get("dequantized" if dequantize else "paper")
        if clean is None:
            return None
        a, b = joined(levels, clean)
        assert len(a) == len(levels["position"])
        return clean["energy"][b, 0] if dequantize else clean["energy"][b]

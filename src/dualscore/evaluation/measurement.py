"""The estimators and checks in turn; after each, evaluation.json holds it."""

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from dualscore.data.base import ImageDataModule
from dualscore.energy import EnergyModel
from dualscore.evaluation import figures, plan
from dualscore.evaluation.bound import Grid
from dualscore.evaluation.estimate import Estimator
from dualscore.evaluation.report import print_figure, write_report
from dualscore.evaluation.run import Session
from dualscore.evaluation.stages import strata
from dualscore.evaluation.store import Rows, joined
from dualscore.likelihood import Estimate, bits, bits_per_dim, dequantized_bits_per_dim
from dualscore.likelihood import consistency as identities
from dualscore.settings.config import CHECKS, ExperimentConfig, KnownDensity


class Measurement:
    """Fills an evaluation's report.

    Args:
        config: the experiment.
        session: measures stages.
        estimators: by name, those that are wanted, in the order of the report.
        report: what is filled; `dimension` and `bits_per_dim` are there already.
        output: evaluation.json, written after each; None to write nothing on the way.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        session: Session,
        estimators: dict[str, Estimator],
        report: dict[str, Any],
        output: Path | None,
    ) -> None:
        self.estimators = estimators
        self.config, self.session, self.report, self.output = config, session, report, output
        self.options = config.evaluate
        self.datamodule: ImageDataModule = session.datamodule
        self.dimension: int = report["dimension"]
        self.t_min, self.t_max = session.subject.t_range
        self.grid = Grid(self.t_min, self.t_max, self.options.strata)
        self.large = plan.reported_variances(session.subject, self.dimension)
        self.entropy = float(session.subject.prior.entropy(self.t_max))
        self.is_energy = isinstance(session.subject.model, EnergyModel)
        self.stages = plan.shared_stages(
            self.options,
            self.datamodule.counts,
            is_energy=self.is_energy,
            energies=any(estimator.energy for estimator in self.estimators.values()),
            known=session.subject.density is not None,
            large=self.large,
        )
        self.rows: dict[str, Rows] = {}
        self.per_image = figures.PerImage()
        self.log_z: Estimate | None = None
        self.shared: Estimate | None = None

    def all(self) -> None:
        """Measure everything that was asked for."""
        for name in ("truth", "normalizer"):
            if name in self.stages:
                self.rows[name] = self.session.run(self.stages[name])
        if "normalizer" in self.rows:
            self.log_z = figures.normalizer(self.rows["normalizer"], self.dimension, self.entropy)
            self.shared = bits(self.log_z, self.dimension)
            self.report["log_normalizer"] = self.log_z.value
        for name, estimator in self.estimators.items():
            if estimator.energy and self.is_energy:
                self._estimate(name, estimator)
        self._levels()
        for name, estimator in self.estimators.items():
            if not estimator.energy:
                self._estimate(name, estimator)
        self._truth()
        self._checks()

    @property
    def counts(self) -> dict[str, int]:
        """Images in each split."""
        return self.datamodule.counts

    def density_bits(self, energy: Tensor) -> Tensor:
        """Bits/dim of normalized energies of images with a density: dequantized where they are 8-bit.

        Args:
            energy: −log p in nats, shape (n,).

        Returns:
            Bits/dim, shape (n,).
        """
        convert = dequantized_bits_per_dim if self.config.data.quantized else bits_per_dim
        return convert(energy, self.dimension)

    @cached_property
    def strata(self) -> Rows | None:
        """The denoiser's error in every stratum of ln t, of images as trained on; None without checks."""
        if not self._checked():
            return None
        number, count = self.grid.number, plan.subset(self.options, self.counts)
        everywhere, as_trained = (0, number), self.config.data.dequantize
        return self.session.run(strata("val", count, number, everywhere, "strata", as_trained=as_trained))

    def _estimate(self, name: str, estimator: Estimator) -> None:
        """Make an estimate, compare it image by image with the others, report it."""
        found = estimator.measure(self)
        shared = self.shared if estimator.energy else None
        normalizing = self.rows["normalizer"]["energy"].numel() if estimator.energy else 0
        self.per_image.add(name, found.position, found.bits, shared)
        figure = self.report["bits_per_dim"][name] = found.figure(shared, normalizing)
        self._write()
        print_figure(estimator.label, figure, self.session.console)
        if name == "paper":
            self._training()

    def _training(self) -> None:
        """The paper's protocol on training images, beside."""
        clean = self.session.run(self.stages["train_paper"])
        noisy = self.session.run(self.stages["train_normalizer"])
        log_z = figures.normalizer(noisy, self.dimension, self.entropy)
        self.report["train"] = figures.paper_figure(clean, noisy, log_z, self.dimension)
        self._write()

    def _write(self) -> None:
        if self.session.fabric.is_global_zero and self.output is not None:
            write_report(self.report, self.output)

    def _levels(self) -> None:
        rows = self.rows["noise_levels"] = self.session.run(self.stages["noise_levels"])
        variances = plan.levels(self.options)
        levels = figures.level_figures(rows, variances, self.dimension)
        self.report["noise_levels"] = [asdict(level) for level in levels]
        self._write()

    def _checked(self) -> bool:
        return self.is_energy and CHECKS in self.options.estimators

    def _truth(self) -> None:
        if "truth" not in self.rows:
            return
        rows, truth = self.rows["truth"], figures.PerImage.TRUTH
        per_image = self.density_bits(rows["energy"])
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
        levels, inside = self.rows["noise_levels"], self.strata
        assert inside is not None
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
                first = (lowest, there[0], *measured, self.t_min, self.config.data.dequantize)
                found.append(identities.first_rise_gap(clean, *first))
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

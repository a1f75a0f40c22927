"""Measure the curvature of a finished run's network, dense and pruned, without touching it; what is done is kept."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab import pruning
from trimtab.files import write_text
from trimtab.inputs import named, read_json_mapping
from trimtab.observe.curvature import (
    Hessian,
    SpectralDensity,
    on_nonzero,
    sharpness,
    spectral_density,
    top_eigenvalues,
    trace,
)
from trimtab.observe.landscape import random_directions, section
from trimtab.runs.curvature_objective import objective_of, training_images
from trimtab.runs.evaluation import evaluate
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.curvature.records import (
    CurvatureRow,
    CurvatureSettings,
    Density,
    Landscape,
    Measured,
    PrunedAccuracy,
)
from trimtab.studies.prune_run import Split, pruned_file, read_pruned
from trimtab.studies.pruning_score import pruning_choice
from trimtab.studies.summary import Row
from trimtab.studies.variants import run_label, safe_name

Note = Callable[[str], None]
LANDSCAPE_POINTS = 17  # per axis: 289 losses [ours]


class MeasuredRun:
    """A finished run, its network pruned to one sparsity after the other and measured.

    Args:
        folder: a finished run.
        settings: how.
        out: folder of the results; finished measurements in it are taken over when nothing has changed.
        split: what accuracy is measured on, taken from the run's own pruning results where they hold it.
        root: where the data lie, if not where the recipe says.

    Raises:
        ValueError: the run is not finished, or the settings do not fit its data.
    """

    def __init__(
        self, folder: RunFolder, settings: CurvatureSettings, out: Path, split: Split, root: str | None = None
    ) -> None:
        recipe = folder.recipe
        if root is not None:
            recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": root})})
        if recipe.pruning.pattern != "unstructured" and any(settings.sparsities):
            raise ValueError(f"{folder.path} prunes by the pattern {recipe.pruning.pattern}; measure --sparsities 0")
        self.folder, self.recipe, self.settings, self.split, self._out = folder, recipe, settings, split, out
        self.data = load_data(recipe)
        self._device = torch.device("cuda" if recipe.device != "cpu" and torch.cuda.is_available() else "cpu")
        self.model = trained_model(folder, self.data).to(self._device)
        if recipe.model.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network = hashlib.sha256(folder.model_file.read_bytes()).hexdigest()[:16]
        self._batches = training_images(
            recipe, self.data, settings.examples, settings.batch, settings.seed, self._device
        )
        file = pruned_file(folder, split)
        self._pruned = read_pruned(file) if file.is_file() else None
        self.label = run_label(recipe) if self._pruned is None else self._pruned.histogram.method

    def measure(self, sparsity: float, note: Note) -> Measured:
        """The measures at one sparsity; kept in the results' folder and taken from there when it is there."""
        file = self._file(f"{100 * sparsity:.6g}")
        identity = self._identity(sparsity)
        kept = kept_measurement(file, identity)
        if kept is not None:
            return kept
        note(f"{self.label} seed {self.recipe.seed} {100 * sparsity:.4g} %")
        with self._pruned_to(sparsity) as recalibrated:
            found = self._measure(sparsity, recalibrated=recalibrated)
        write_text(file, json.dumps({"identity": identity, **found.model_dump(mode="json")}) + "\n")
        return found

    def is_kept(self, sparsity: float) -> bool:
        """Whether `measure` would take this measurement from the results' folder."""
        return kept_measurement(self._file(f"{100 * sparsity:.6g}"), self._identity(sparsity)) is not None

    def costs(self) -> tuple[float, float]:
        """Seconds of one product with the Hessian and of one loss, the second of two each."""
        objective = objective_of(self.recipe, self.model, self._batches)
        hessian = Hessian(objective)
        vector = torch.ones_like(hessian.weights)

        def second(call: Callable[[], float]) -> float:
            call()
            started = time.perf_counter()
            call()
            return time.perf_counter() - started

        found = second(lambda: float((hessian @ vector).sum())), second(objective.loss)
        hessian.release()
        return found

    def landscape(self, progress: Callable[[int, int], object] | None = None) -> Landscape:
        """The dense network's loss on a plane of two filter-normalized random directions, the same seed for all runs."""
        objective = objective_of(self.recipe, self.model, self._batches)
        directions = random_directions(objective, seed=self.settings.seed)
        found = section(objective, directions, points=LANDSCAPE_POINTS, file=self._file("landscape"), progress=progress)
        losses: Any = found.losses
        return Landscape(
            method=self.label,
            seed=self.recipe.seed,
            sparsity=0.0,
            directions=f"random, filter-normalized, seed {self.settings.seed}",
            coordinates=list(found.coordinates),
            losses=[[loss if math.isfinite(loss) else None for loss in line] for line in losses],
            centre=found.centre,
        )

    @contextmanager
    def _pruned_to(self, sparsity: float) -> Iterator[bool]:
        """The network pruned, and recalibrated if that was asked for (the value says so), inside; as it was afterwards."""
        section = self.recipe.pruning
        if not sparsity:
            yield False
            return
        choice = pruning_choice(self.recipe, self.data, device=self._device) | {"pattern": "unstructured"}
        sweep = pruning.sweep(self.model, (sparsity,), **choice)
        with closing(sweep):
            next(sweep)
            normalized = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules())
            again = self.settings.recalibrate and normalized
            if again:
                batches = batches_of(self.recipe, self.data, "train", device=self._device)
                images = batches.sample(section.recalibrate_batches, self.recipe.seed)
                pruning.recalibrate(self.model, images, device=self._device)
            yield again

    def _file(self, what: str) -> Path:
        return self._out / "measured" / f"{safe_name(self.label)}-seed{self.recipe.seed}-{what}.json"

    def _identity(self, sparsity: float) -> dict[str, Any]:
        """Everything a row depends on."""
        data = self.recipe.data.model_dump(mode="json", exclude={"root"})
        return {
            "network": self._network,
            "label": self.label,
            "split": self.split,
            "sparsity": sparsity,
            "data": data,
            "pruning": self.recipe.pruning.model_dump(mode="json", exclude={"sparsities", "controls"}),
            "settings": self.settings.model_dump(mode="json", exclude={"sparsities"}),
        }

    def _accuracy(self, sparsity: float, *, recalibrated: bool) -> float:
        """From the run's pruning results where they are of this network, else evaluated."""
        known = self._known(sparsity, recalibrated=recalibrated)
        if known is not None:
            return known.accuracy
        batches = batches_of(self.recipe, self.data, self.split, device=self._device)
        return evaluate(self.model, batches, self.data.num_classes).accuracy

    def _known(self, sparsity: float, *, recalibrated: bool) -> Row | None:
        for row in self._own_rows():
            if row.recalibrated == recalibrated and abs(row.sparsity - sparsity) < 1e-4:
                return row
        return None

    def _own_rows(self) -> list[Row]:
        """Rows of the run's pruning results that are of this network, pruned as the recipe says."""
        section, pruned = self.recipe.pruning, self._pruned
        same = ("score", "scope", "pattern", "recalibrate_batches")
        if pruned is None or any(pruned.settings.get(name) != getattr(section, name) for name in same):
            return []
        if pruned.settings.get("network") not in (None, self._network):
            return []
        return [
            row for row in pruned.rows
            if (row.score, row.scope) == (section.score, section.scope) and not row.finetuned
        ]  # fmt: skip

    def pruned_accuracies(self) -> list[PrunedAccuracy]:
        """Accuracy at every sparsity that the run's pruning results hold, recalibrated if the settings say so."""
        rows = [row for row in self._own_rows() if row.sparsity]
        again = self.settings.recalibrate and any(row.recalibrated for row in rows)
        return [
            PrunedAccuracy(
                method=self.label, seed=self.recipe.seed, sparsity=round(row.sparsity, 4), accuracy=row.accuracy
            )
            for row in rows
            if row.recalibrated == again
        ]

    def _measure(self, sparsity: float, *, recalibrated: bool) -> Measured:
        settings = self.settings
        objective = objective_of(self.recipe, self.model, self._batches)
        hessian = Hessian(objective)
        operator = on_nonzero(hessian) if sparsity else hessian
        top = top_eigenvalues(
            operator,
            settings.eigenvalues,
            tolerance=settings.tolerance,
            max_products=max(settings.max_products, settings.eigenvalues),
            seed=settings.seed,
        )
        total = trace(operator, settings.trace_products, seed=settings.seed)
        density = None
        if settings.density_probes:
            density = spectral_density(operator, settings.density_probes, settings.density_steps, seed=settings.seed)
        hessian.release()
        ball = sharpness(objective, settings.rho, settings.ascent_steps, on_nonzero=bool(sparsity))
        adaptive = sharpness(objective, settings.adaptive_rho, settings.ascent_steps, adaptive=True)
        norm = float(torch.linalg.vector_norm(hessian.weights.double()))
        coordinates = int((hessian.weights != 0).sum()) if sparsity else objective.size
        row = CurvatureRow(
            method=self.label,
            seed=self.recipe.seed,
            sparsity=sparsity,
            recalibrated=recalibrated,
            accuracy=self._accuracy(sparsity, recalibrated=recalibrated),
            split=self.split,
            loss=ball.loss,
            gradient_norm=ball.gradient_norm,
            weight_norm=norm,
            coordinates=coordinates,
            eigenvalues=list(top.values),
            residuals=list(top.residuals),
            converged=top.converged,
            trace=total.value,
            trace_error=total.standard_error,
            sharpness=ball.value,
            sharpness_one_step=ball.one_step,
            adaptive_sharpness=adaptive.value,
            normalized_eigenvalue=top.values[0] * norm**2,
            normalized_trace=total.value * norm**2 / coordinates,
            products=top.products + total.products,
        )
        return Measured(row=row, density=None if density is None else _density(density, row))


def kept_measurement(file: Path, identity: dict[str, Any]) -> Measured | None:
    """What a file holds, None when there is none or it is of another network or setting."""
    if not file.is_file():
        return None
    with named(file, "is damaged; delete it to measure again"):
        held = read_json_mapping(file)
        return Measured(row=held["row"], density=held["density"]) if held["identity"] == identity else None


def _density(found: SpectralDensity, row: CurvatureRow) -> Density:
    return Density(
        method=row.method,
        seed=row.seed,
        sparsity=row.sparsity,
        start=found.grid[0],
        step=found.grid[1] - found.grid[0],
        values=[float(f"{value:.4g}") for value in found.density],
        width=found.width,
        negative=found.mass(high=-found.width),
        products=found.products,
    )

"""Prune a finished run at every sparsity of its recipe and measure what is left, recalibrated and not."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trimtab import datasets, pruning
from trimtab.deploy import StoreReport, save_sparse
from trimtab.files import write_text
from trimtab.inputs import named, utf8
from trimtab.observe import summary as model_summary
from trimtab.observe import weight_distribution
from trimtab.pruning.recalibration import has_batch_norm
from trimtab.runs.evaluation import Quality, evaluate
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder, changed
from trimtab.runs.sections import Pruning
from trimtab.studies.documents import Record, finite
from trimtab.studies.file_forms import Measuring, compact_rows, dense_rows
from trimtab.studies.fine_tuning import fine_tune
from trimtab.studies.pruning_score import pruning_choice
from trimtab.studies.statistics import sparsity_label
from trimtab.studies.summary import FileRow, Histogram, Row, Storage
from trimtab.studies.variants import run_label

Split = Literal["validation", "test"]


class PrunedRun(Record):
    """What pruning one run gave: `pruning.json` of its folder."""

    settings: dict[str, Any]
    rows: list[Row]
    storage: list[Storage]
    files: list[FileRow] = Field(default=[], description="networks as files, where the settings ask for bits")
    histogram: Histogram
    left_out: dict[str, str]
    views: dict[str, float] | None = Field(
        default=None,
        description="quality of the dense network over several views of an image, where the recipe asks for it",
    )
    varied: list[str] = Field(
        description="dotted names of the recipe's fields that the run's study gives several values"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, data: Any) -> Any:
        """Files of versions that kept what is varied in the label alone, as `var[var.strength=1e-5,...]`."""
        if isinstance(data, dict) and "varied" not in data:
            inside = str(data.get("settings", {}).get("label", "")).partition("[")[2].rstrip("]")
            data = {**data, "varied": [item.partition("=")[0] for item in inside.split(",") if item]}
        return data

    @model_validator(mode="after")
    def _with_what_reports_name(self) -> Self:
        wanted = ["score", "scope", "pattern", *["finetune_rate"] * any(row.finetuned for row in self.rows)]
        if missing := [name for name in wanted if name not in self.settings]:
            raise ValueError(f"settings lack {', '.join(missing)}")
        return self


@contextmanager
def _buffers_put_back(model: nn.Module) -> Iterator[None]:
    """Put every buffer (BatchNorm statistics) back bit for bit at the end."""
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)


class _Measured:
    """Evaluates one network again and again, as it is and recalibrated."""

    def __init__(
        self, recipe: Recipe, folder: RunFolder, data: datasets.DataSet, split: Split, device: torch.device
    ) -> None:
        self.recipe, self.data, self.split = recipe, data, split
        self.model = trained_model(folder, data).to(device)
        self.device = device
        self.batches = batches_of(recipe, data, split, device=device)
        # Statistics come from training images as the network was trained on them, a choice fixed by the run's seed.
        self.calibration = batches_of(recipe, data, "train", device=device).sample(
            recipe.pruning.recalibrate_batches, recipe.seed
        )
        self.recalibrates = has_batch_norm(self.model)

    def quality(self, model: nn.Module | None = None) -> Quality:
        return evaluate(model or self.model, self.batches, self.data.num_classes)

    def quality_over_views(self) -> dict[str, float] | None:
        if self.recipe.views == 1:
            return None
        found = evaluate(self.model, self.batches, self.data.num_classes, views=self.recipe.views)
        return {"views": self.recipe.views, "accuracy": found.accuracy, "loss": found.loss}

    def recalibrate(self, model: nn.Module) -> None:
        """BatchNorm's statistics of a network, from the same batches each time."""
        pruning.recalibrate(model, self.calibration, device=self.device)

    def as_files(self, label: str, scratch: Path) -> Measuring:
        """How networks are measured that were written as files."""
        prepare = self.recalibrate if self.recalibrates else None
        return Measuring(self.quality, prepare, label, self.recipe.seed, self.split, scratch)

    def recalibrated_quality(self) -> Quality:
        with _buffers_put_back(self.model):
            self.recalibrate(self.model)
            return self.quality()


def _row(recipe: Recipe, label: str, split: Split, quality: Quality, **fields: Any) -> Row:
    return Row(
        method=label,
        seed=recipe.seed,
        split=split,
        accuracy=quality.accuracy,
        loss=finite(quality.loss),
        top5=quality.top5,
        iou=quality.iou,
        bits_per_byte=finite(quality.bits_per_byte),
        perplexity=finite(quality.perplexity),
        **fields,
    )


def _combinations(section: Pruning, *, plain: bool) -> list[tuple[str, str]]:
    """Score and scope asked for, then the controls; controls belong to the plain optimizers, which are the baseline."""
    asked = (section.score, section.scope)
    controls = [("random", "global"), ("magnitude", "layer")] if section.controls and plain else []
    if section.pattern != "unstructured":  # which chooses within its groups: a layer's masks are those of the network
        controls = controls[:1]
    return [asked, *(pair for pair in controls if pair != asked)]


def measured_as(recipe: Recipe, split: Split, label: str) -> dict[str, Any]:
    """What a measurement is kept under, but for the network that it is of."""
    return {
        **recipe.pruning.model_dump(mode="json"),
        "split": split,
        "label": label,
        "recalibrated_on": "augmented",
        **({"views": recipe.views} if recipe.views > 1 else {}),
    }


def _network(model_file: Path) -> str | None:
    return hashlib.sha256(model_file.read_bytes()).hexdigest()[:16] if model_file.is_file() else None


def asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How a measurement was asked for: the pruning section in it; fields younger than the file have their defaults."""
    own = Pruning().model_dump(mode="json")
    return {name: settings.get(name, default) for name, default in own.items()}


def unlike(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Which settings of a measurement differ from those wanted, empty for none; with fine-tuning it stands for one without."""
    old, new = {**kept, **asked(kept)}, json.loads(json.dumps(wanted))
    if not new["finetune"]:
        new |= {name: old[name] for name in ("finetune", "finetune_rate")}
    return changed(old, new)


def read_pruned(file: Path) -> PrunedRun:
    """Read what `prune_run` kept; ValueError names the file when it is damaged."""
    with named(file, "is damaged; delete it to measure again"):
        return PrunedRun.model_validate_json(utf8(file))


def pruned_file(folder: RunFolder, split: Split) -> Path:
    """Where a run's measurements on a split are kept."""
    return folder.path / f"pruning-{split}.json"


def prune_run(
    folder: RunFolder,
    *,
    recipe: Recipe | None = None,
    label: str | None = None,
    varied: Sequence[str] = (),
    split: Split = "test",
    data: datasets.DataSet | None = None,
    report: Callable[[str], None] | None = None,
    file: Path | None = None,
) -> PrunedRun:
    """Measure a finished run at every sparsity; results are kept in `pruning-SPLIT.json` and reused when nothing changed.

    Each sparsity is pruned from the dense network (one-shot, nothing retrained), measured as it is, then with BatchNorm
    statistics re-estimated on augmented training images. The run folder's network is not changed. Where the pruning section
    says so each is also trained on (`fine_tuning`) and measured again, the dense one too; that is done once for all splits.

    Args:
        folder: a finished run.
        recipe: the run's recipe with other `pruning` settings; default the folder's own.
        label: name of the method in the rows; default its method and transforms.
        varied: dotted names of the recipe's fields that the study gives several values.
        split: what to measure on. Settings are chosen on "validation"; "test" is for the final figures.
        data: the loaded data set, when the caller has it.
        report: called with a short text before each measurement.
        file: where the results are kept; default `pruning-SPLIT.json` in the run folder, which reports read.

    Raises:
        ValueError: the run is not finished, or the settings do not fit the network.
    """
    recipe = recipe or folder.recipe
    label = label or run_label(recipe)
    settings = {**measured_as(recipe, split, label), "network": _network(folder.model_file)}
    file = file or pruned_file(folder, split)
    if file.is_file():
        kept = read_pruned(file)
        if not unlike(kept.settings, settings):
            return kept
    data = data or load_data(recipe)
    device = torch.device("cuda" if recipe.device != "cpu" and torch.cuda.is_available() else "cpu")
    measured = _Measured(recipe, folder, data, split, device)
    model, section = measured.model, recipe.pruning
    rows: list[Row] = []
    storage: list[Storage] = []
    files: list[FileRow] = []
    left_out: dict[str, str] = {}
    example = data.example().to(device)
    dense, views = measured.quality(), measured.quality_over_views()
    note = report or (lambda text: None)

    def add(quality: Quality, **fields: Any) -> None:
        """The rows of the network as it is now: as pruned, and recalibrated."""
        rows.append(_row(recipe, label, split, quality, recalibrated=False, **fields))
        if measured.recalibrates:
            rows.append(_row(recipe, label, split, measured.recalibrated_quality(), recalibrated=True, **fields))

    def add_fine_tuned(masks: Mapping[str, Tensor], **fields: Any) -> None:
        """The row of the network as it is now, trained on."""
        tuned = trained_model(fine_tune(folder, recipe, model.state_dict(), masks, note), data).to(device)
        if "file_bytes" in fields:
            fields["file_bytes"] = save_sparse(tuned, Path(scratch) / "network.safetensors").sparse_bytes
        quality = measured.quality(tuned)
        rows.append(_row(recipe, label, split, quality, recalibrated=False, finetuned=section.finetune, **fields))

    with tempfile.TemporaryDirectory() as scratch:
        forms = measured.as_files(label, Path(scratch))
        if section.bits:
            note(f"files of {', '.join(map(str, section.bits))} bits, dense")
            stored_dense = save_sparse(model, forms.scratch / "network.safetensors")
            files += dense_rows(model, dense, stored_dense.dense_bytes, forms)
            files += compact_rows(model, 0.0, section.bits, forms)
        for score, scope in _combinations(section, plain=recipe.is_plain):
            control = (score, scope) != (section.score, section.scope)
            chosen: dict[str, Any] = {"score": score, "scope": scope}
            add(dense, sparsity=0.0, sparsity_total=0.0, **chosen)
            if section.finetune and not control:
                add_fine_tuned({}, sparsity=0.0, sparsity_total=0.0, **chosen)
            sparsities = section.sparsities if section.pattern == "unstructured" else (None,)
            choice = pruning_choice(recipe, data, score=score, scope=scope, device=device)
            for pruned in pruning.sweep(model, sparsities, **choice):
                note(f"{score}/{scope} {sparsity_label(pruned.sparsity)}")
                left_out = {entry.name: reason for entry, reason in pruned.left_out}
                stored: StoreReport | None = None
                fields: dict[str, Any] = {}
                if not control:
                    stored = save_sparse(model, Path(scratch) / "network.safetensors", with_gzip=True)
                    work = model_summary(model, example)
                    fields = {
                        "file_bytes": stored.sparse_bytes,
                        "dense_bytes": stored.dense_bytes,
                        "multiply_adds_ratio": work.dense_multiply_adds / max(work.sparse_multiply_adds, 1),
                    }
                    storage.append(
                        Storage(
                            method=label,
                            sparsity=pruned.sparsity,
                            sparse_bytes=stored.sparse_bytes,
                            dense_bytes=stored.dense_bytes,
                            gzip_bytes=stored.gzip_bytes or 0,
                            bound_bytes=stored.bound_bytes,
                        )
                    )
                fields |= {"sparsity": pruned.sparsity, "sparsity_total": pruned.sparsity_total, **chosen}
                add(measured.quality(), **fields)
                if section.bits and stored is not None:
                    note(f"files of {', '.join(map(str, section.bits))} bits, {sparsity_label(pruned.sparsity)}")
                    quality = measured.recalibrated_quality() if measured.recalibrates else measured.quality()
                    files.append(forms.row("sparse", pruned.sparsity, stored.sparse_bytes, quality))
                    files += compact_rows(model, pruned.sparsity, section.bits, forms)
                if section.finetune and not control:
                    add_fine_tuned(pruned.masks, **fields)
    weights = weight_distribution(model)
    histogram = Histogram(
        method=label,
        seed=recipe.seed,
        edges=list(weights.edges),
        counts=list(weights.counts),
        near_zero=weights.near_zero,
        variance_of_magnitude=weights.variance_of_magnitude,
        root_mean_square=weights.root_mean_square,
    )
    result = PrunedRun(
        settings=settings,
        rows=rows,
        storage=storage,
        files=files,
        histogram=histogram,
        left_out=left_out,
        views=views,
        varied=list(varied),
    )
    write_text(file, result.model_dump_json(indent=1) + "\n")
    return result

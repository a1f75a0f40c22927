"""What a study found, in one documented JSON file: the interface between experiments and reports."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trimtab.frames import frame, html_table
from trimtab.runs.metric import METRICS, Metric, MetricName
from trimtab.studies.contrasts import Judged
from trimtab.studies.documents import Document, Record
from trimtab.studies.latex import main_table
from trimtab.studies.statistics import Entry, main_rows, sparsity_label, table

SCHEMA = "trimtab.summary/1"
Form = Literal["fp32", "bf16", "sparse", "compact"]
Why = Literal["failed", "unfinished", "not started", "not measured"]


class Row(Record):
    """One network at one operating point: a method, a seed, a sparsity, recalibrated or not."""

    method: str = Field(
        description="label of the method as in the recipe, e.g. 'sgd', 'var+sam', 'var[var.strength=1e-4]'"
    )
    seed: int
    sparsity: float = Field(
        ge=0, le=1, description="fraction of the prunable weights that is zero; 0 is the dense network"
    )
    sparsity_total: float = Field(description="fraction of all parameters that is zero")
    score: Literal["magnitude", "layer_magnitude", "random", "wanda"] = "magnitude"
    scope: Literal["global", "layer", "erk", "row"] = "global"
    recalibrated: bool = Field(description="BatchNorm statistics re-estimated on training batches after pruning")
    finetuned: int = Field(
        default=0,
        ge=0,
        description="epochs that the network was trained on after pruning, the removed weights kept at zero",
    )
    split: Literal["validation", "test"] = "test"
    accuracy: float = Field(
        description="top-1 accuracy in [0, 1]; mean foreground Dice for segmentation; share of bytes guessed right for texts"
    )
    top5: float | None = Field(default=None, description="top-5 accuracy, where there are more than 20 classes")
    iou: float | None = Field(default=None, description="mean foreground intersection over union, segmentation only")
    loss: float | None = Field(description="mean cross-entropy; null where it is not finite")
    bits_per_byte: float | None = Field(
        default=None,
        description="texts only: mean of -log2 of the probability of the byte that follows; lower is better",
    )
    perplexity: float | None = Field(default=None, description="texts only: 2 to the power of the bits per byte")
    file_bytes: int | None = Field(default=None, description="size of the sparse file; None where none was written")
    dense_bytes: int | None = Field(default=None, description="size of the same network as a dense safetensors file")
    multiply_adds_ratio: float | None = Field(
        default=None, description="dense over sparse multiply-adds: theoretical speed-up"
    )


class Histogram(Record):
    """Distribution of one network's prunable weights."""

    method: str
    seed: int
    edges: list[float] = Field(description="n + 1 bin edges of the weight divided by the root mean square of its layer")
    counts: list[int]
    near_zero: float = Field(description="fraction of weights with |w| < 0.1 root mean square of its layer")
    variance_of_magnitude: float = Field(
        description="biased variance of |w| over its layer's mean |w| squared, averaged over layers"
    )
    root_mean_square: float = Field(description="of all prunable weights, unnormalised")


class Run(Record):
    """One training run."""

    method: str
    seed: int
    folder: str = Field(description="run folder, relative to the summary; gone where only the run's record was kept")
    epochs: int
    steps: int
    train_seconds: float
    step_seconds: float = Field(description="median seconds of one optimizer step")
    train_loss: float
    validation_accuracy: float | None
    validation_bits_per_byte: float | None = Field(default=None, description="texts only")
    levers: dict[str, dict[str, float | None]] = Field(
        default={}, description="what the levers told of themselves at the end, by name; null where it is not finite"
    )


class Missing(Record):
    """A run that was planned or begun and is not in the tables."""

    method: str
    seed: int
    folder: str = Field(description="run folder, relative to the summary")
    why: Why = Field(description="not measured: trained, but not pruned and measured on the split")
    detail: str = Field(default="", description="the error, or how far training got")

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}: {self.why}{f' ({self.detail})' if self.detail else ''}"


class Cost(Record):
    """Cost of a step of a method relative to the plain optimizer, measured interleaved in one process."""

    method: str
    ratio: float
    extra_state_ratio: float = Field(description="optimizer state bytes relative to the base optimizer's")


class Latency(Record):
    """One layer, dense against sparse, on this machine."""

    what: str
    sparsity: float
    batch: int
    ratio: float = Field(description="dense time over sparse time; above 1 the sparse form is faster")
    faster: bool


class Storage(Record):
    """One network's file in several forms."""

    method: str
    sparsity: float
    sparse_bytes: int
    dense_bytes: int
    gzip_bytes: int
    bound_bytes: int = Field(description="entropy bound: mask entropy plus the kept values")


class FileRow(Record):
    """One network as one file: its bytes, and the quality of the network that the file gives back."""

    method: str
    seed: int
    split: Literal["validation", "test"] = "test"
    form: Form = Field(
        description="fp32: dense, as trained; bf16: weights in bfloat16; sparse: pruned, float32; compact: quantised and "
        "entropy-coded, pruned or not"
    )
    sparsity: float = Field(ge=0, le=1, description="fraction of the prunable weights that is zero")
    bits: int | None = Field(default=None, description="of a weight, where it has fewer than 32")
    bytes: int
    accuracy: float = Field(
        description="as of the rows; BatchNorm re-estimated where there is any, but for the dense forms"
    )
    bits_per_byte: float | None = None


class DynamicsFacts(Record):
    """A run's gradient dynamics in numbers, from every tracked step; null where there is nothing to compute it from."""

    heterogeneity: float | None = Field(
        description="largest over smallest standard deviation of a layer's gradient, median over steps"
    )
    fall: float | None = Field(
        description="global standard deviation: median of the first tenth of the tracked steps over that of the last"
    )
    trend: float | None = Field(
        description="Spearman's rank correlation of the global standard deviation with the step; -1 is a steady fall"
    )
    update_ratio: float | None = Field(description="update-to-weight ratio of all layers together, median over steps")
    alpha: tuple[float, float] | None = Field(description="least and greatest alpha of Autoscale")
    dead: int = Field(description="layers whose gradient is zero everywhere in half or more of the tracked steps")
    non_finite: int = Field(description="NaN and infinite gradient entries of all tracked steps")


class LayerDynamics(Record):
    """One parameter over training."""

    name: str
    log10_std: list[float | None] = Field(
        description="per point: log10 of the gradient's standard deviation, null where that is 0 or not finite; empty but "
        "for the first seed of each method in a study"
    )
    first: float | None = Field(description="standard deviation, median over the first tenth of the tracked steps")
    last: float | None = Field(description="the same over the last tenth")
    update_ratio: float | None = Field(description="norm of the update over norm of the weights, median over steps")
    dead: float = Field(description="share of the tracked steps in which the gradient is zero everywhere")
    non_finite: int = Field(description="NaN and infinite entries of all tracked steps")


class AlarmRow(Record):
    """An alarm of a guard."""

    step: int = Field(description="optimizer step, counted from 0")
    kind: str = Field(description="loss, gradient, update, dead, ranks, or the name of a watched signal")
    action: str = Field(description="what was done: warn, skip, undo, lower_lr, rollback")
    text: str = Field(description="all of it in a sentence")


class Dynamics(Record):
    """How the gradients of one run went over training, in at most 120 points.

    A point stands for consecutive tracked steps: its values are their medians, its counts their maxima.
    """

    method: str
    seed: int
    tracked: int = Field(description="how many steps were tracked")
    steps: list[int] = Field(description="per point: the last of its optimizer steps, counted from 0")
    std: list[float | None] = Field(
        description="per point: standard deviation of all tracked gradients together; null where it is not finite"
    )
    update_ratio: list[float | None] = Field(
        default=[],
        description="per point: norm of the step's weight change over norm of the weights; empty if untracked",
    )
    dead: list[int] = Field(description="per point: layers whose gradient is zero everywhere")
    non_finite: list[int] = Field(description="per point: gradient entries that are NaN or infinite")
    signals: dict[str, list[float | None]] = Field(
        default={}, description="per point: what the transforms report, such as Autoscale's alpha"
    )
    layers: list[LayerDynamics] = Field(description="in the network's order")
    alarms: list[AlarmRow] = Field(default=[], description="of a guarded run, in order")
    facts: DynamicsFacts


class CurvatureTrack(Record):
    """Curvature of one run over its epochs."""

    method: str
    seed: int
    batch: int = Field(description="training images the loss is averaged over, the same at every point")
    epochs: list[int] = Field(description="per point: epochs trained")
    eigenvalues: list[float] = Field(description="per point: largest eigenvalue of the Hessian of the task's loss")
    residuals: list[float] = Field(description="per point: an eigenvalue lies within its residual")
    sharpness: list[float] = Field(description="per point: rise of the loss after one step of SAM, rho 0.05")


class BearingTrack(Record):
    """What one run's network could bear while it trained."""

    method: str
    seed: int
    images: int = Field(description="validation images or windows, the same at every point")
    epochs: list[int] = Field(description="per point: epochs trained")
    learning_rates: list[float] = Field(description="per point: of the epoch's last step")
    dense: list[float | None] = Field(description="per point: quality in the study's metric, BatchNorm re-estimated")
    sparsities: dict[str, list[float | None]] = Field(
        description="by fraction of pruned weights, per point: quality pruned by global magnitude, BatchNorm re-estimated"
    )
    bits: dict[str, list[float | None]] = Field(description="by bits of a weight, per point: quality rounded")
    critical: list[float | None] = Field(
        description="per point: critical learning rate, the smallest along the last step that raises the loss of its batch"
    )
    critical_open: list[int] = Field(
        description="per point: 1 where the critical learning rate is at least this, -1 where it is at most this, else 0"
    )
    cost: float | None = Field(
        default=None, description="forward passes for all points as a share of training's passes, counted"
    )


class Summary(Document):
    """Everything a report shows. Written as `summary.json`."""

    schema_: str = Field(default=SCHEMA, alias="schema")
    name: str
    headline: str
    created: str = Field(description="ISO 8601, UTC")
    metric: MetricName = Field(description="what networks are compared by; of bits per byte less is better")
    chance: float = Field(
        description="what guessing reaches: 1 / classes, 0 for Dice, for bits per byte the order-0 entropy of the training text"
    )
    recipe: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, str | int | float | None]
    runs: list[Run]
    missing: list[Missing] = Field(
        default=[], description="runs that the study planned or began and that are not in it"
    )
    rows: list[Row]
    contrasts: list[Judged] = Field(
        default=[], description="what the study named beforehand, paired by seed and corrected for their number"
    )
    histograms: list[Histogram] = Field(default=[])
    costs: list[Cost] = Field(default=[])
    latencies: list[Latency] = Field(default=[])
    storage: list[Storage] = Field(default=[])
    files: list[FileRow] = Field(default=[], description="networks as files, where pruning.bits asks for it")
    dynamics: list[Dynamics] = Field(default=[], description="of the runs that were tracked")
    curvature: list[CurvatureTrack] = Field(default=[], description="of the runs whose curvature was tracked")
    bearing: list[BearingTrack] = Field(default=[], description="of the runs whose bearing was tracked")
    notes: list[str] = Field(default=[], description="plain sentences that the report prints under the headline")

    @property
    def measure(self) -> Metric:
        """The metric: which field of a row, which way is better, how it is written."""
        return METRICS[self.metric]

    def records(self) -> list[dict[str, Any]]:
        """The rows, with the fields of `Row`."""
        return [row.model_dump() for row in self.rows]

    def to_pandas(self) -> Any:
        """`records()` as a pandas frame; ImportError where pandas (extra `frames`) is not installed."""
        return frame(self.records())

    def _state(self, *, recalibrated: bool | None) -> list[Entry]:
        entries = table(main_rows(self.rows), field=self.measure.column)
        if recalibrated is None:
            recalibrated = any(entry.recalibrated for entry in entries)
        found = [entry for entry in entries if entry.recalibrated == recalibrated]
        if not found:
            state = "recalibrated" if recalibrated else "not recalibrated"
            raise ValueError(f"the summary {self.name!r} has no rows that are {state}")
        return found

    def _repr_html_(self) -> str:
        if not self.rows:
            return html_table([], self.headline)
        found: dict[str, dict[str, Any]] = {}
        for entry in self._state(recalibrated=None):
            number = self.measure.number
            text = number(entry.mean) + ("" if entry.half is None else f" \u00b1 {number(entry.half)}")
            found.setdefault(entry.method, {"method": entry.method})[sparsity_label(entry.sparsity)] = text
        heads = list(dict.fromkeys(head for record in found.values() for head in record))
        return html_table([{head: record.get(head) for head in heads} for record in found.values()], self.headline)

    def to_latex(self, *, recalibrated: bool | None = None, caption: str = "", label: str = "tab:sparsity") -> str:
        """Methods by sparsities as a LaTeX table with booktabs: mean and half the 95 % interval over seeds, in percent or bits.

        Bold: the best mean of a column, and every method whose difference to it, paired over seeds, has a 95 % t interval
        that holds zero.

        Args:
            recalibrated: the state of the networks. Default: recalibrated where that was measured.
            caption: before what the numbers are; escaped.
            label: for `\\ref`.

        Raises:
            ValueError: no row in that state.
        """
        text = f"{caption.rstrip('. ')}. " if caption else ""
        return main_table(self._state(recalibrated=recalibrated), self.measure, text, label)

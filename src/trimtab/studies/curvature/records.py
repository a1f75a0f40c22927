"""What `trimtab curvature` measures and keeps: settings, one row per network and sparsity, sections of the loss."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from trimtab.frames import frame, html_table
from trimtab.runs.section import Section
from trimtab.studies.documents import Document, Record
from trimtab.studies.latex import cell, escaped, framed, sparsity_head, spread
from trimtab.studies.statistics import estimate
from trimtab.studies.summary import CurvatureTrack, Missing

SCHEMA = "trimtab.curvature/1"


class CurvatureSettings(Section):
    """How the curvature of a trained network is measured."""

    sparsities: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(default=(0.0, 0.5, 0.9), min_length=1)
    """Fractions of the prunable weights to remove before measuring; 0 is the dense network."""
    examples: PositiveInt = 512
    """Training images, without augmentation, that the loss is averaged over; the same for all runs."""
    batch: PositiveInt = 512
    """Images per batch; with a single batch products are cheapest, with several memory stays that of one."""
    recalibrate: bool = True
    """Re-estimate BatchNorm statistics of pruned networks before they are measured, as the recipe's pruning does."""
    eigenvalues: PositiveInt = 1
    """How many of the largest eigenvalues."""
    tolerance: float = Field(default=0.01, gt=0, lt=1)
    """Residual of an eigenvalue, relative to it, at which it counts as converged."""
    max_products: PositiveInt = 60
    """Most products with the Hessian for the eigenvalues."""
    trace_products: int = Field(default=15, ge=9)
    """Products with the Hessian for the trace (Hutch++)."""
    density_probes: NonNegativeInt = 2
    """Start vectors of the spectral density; 0 leaves it out, else at least 2."""
    density_steps: PositiveInt = 16
    """Lanczos steps of each start vector."""
    rho: PositiveFloat = 0.05
    """Radius of the ball of SAM's sharpness, in weights' units."""
    adaptive_rho: PositiveFloat = 0.5
    """Radius of the ball of adaptive sharpness, relative to each weight."""
    ascent_steps: PositiveInt = 3
    """Ascent steps within the balls."""
    seed: NonNegativeInt = 0
    """Of the choice of images and of all random vectors."""

    @property
    def most_products(self) -> int:
        """Products with the Hessian for one network, at most; an ascent of a sharpness counts as one, though it costs less."""
        return (
            max(self.max_products, self.eigenvalues)
            + self.trace_products
            + self.density_probes * self.density_steps
            + 2 * self.ascent_steps
        )

    @field_validator("sparsities")
    @classmethod
    def _distinct(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a sparsity occurs twice")
        return value

    @field_validator("density_probes")
    @classmethod
    def _two_or_none(cls, value: int) -> int:
        if value == 1:
            raise ValueError("a density needs at least 2 probes for its standard errors, or 0 to leave it out")
        return value


class _Finite(Record, allow_inf_nan=False):
    """Without NaN and infinity."""


class CurvatureRow(_Finite):
    """One network: a method, a seed, a sparsity."""

    method: str
    seed: int
    sparsity: float = Field(description="fraction of the prunable weights that is zero; 0 is the dense network")
    recalibrated: bool = Field(description="BatchNorm statistics re-estimated after pruning")
    accuracy: float = Field(description="of this network on `split`; Dice for segmentation")
    split: Literal["validation", "test"]
    loss: float = Field(description="on the training images measured on, without penalty")
    gradient_norm: float
    weight_norm: float = Field(description="Euclidean norm of all parameters")
    coordinates: int = Field(description="parameters that are not zero: the curvature is that of the loss in these")
    eigenvalues: list[float] = Field(description="largest of the Hessian, descending")
    residuals: list[float] = Field(description="an eigenvalue lies within its residual")
    converged: bool
    trace: float
    trace_error: float = Field(description="standard error of the trace")
    sharpness: float = Field(description="greatest rise of the loss found within ||e|| <= rho")
    sharpness_one_step: float = Field(description="rise after the single step of SAM")
    adaptive_sharpness: float = Field(description="greatest rise found within ||e / |w||| <= adaptive_rho")
    normalized_eigenvalue: float = Field(description="largest eigenvalue times weight_norm^2")
    normalized_trace: float = Field(
        description="trace times weight_norm^2 / coordinates: the curvature met by a random change as long as the weights"
    )
    products: int = Field(description="products with the Hessian for eigenvalues and trace")


class Density(_Finite):
    """A spectral density on an even grid."""

    method: str
    seed: int
    sparsity: float
    start: float = Field(description="first eigenvalue of the grid")
    step: float = Field(description="distance of its points")
    values: list[float] = Field(description="density per unit of eigenvalue; integrates to 1")
    width: float = Field(description="standard deviation of the Gaussian that stands for each quadrature node")
    negative: float = Field(description="share of the coordinates with an eigenvalue below -width")
    products: int


class PrunedAccuracy(_Finite):
    """What pruning leaves of a network, from the run's own pruning results."""

    method: str
    seed: int
    sparsity: float
    accuracy: float = Field(description="on the rows' split, in the rows' state (recalibrated or not)")


class Measured(_Finite):
    """What is kept of one network."""

    row: CurvatureRow
    density: Density | None


class Landscape(_Finite):
    """The loss on a plane through the trained weights."""

    method: str
    seed: int
    sparsity: float
    directions: str = Field(description="how they were chosen and scaled")
    coordinates: list[float] = Field(description="multiples of a direction, the same for both")
    losses: list[list[float | None]] = Field(description="by first, then second direction; null where not finite")
    centre: float


class CurvatureSummary(Document, allow_inf_nan=False):
    """Everything `trimtab curvature` found. Written as `curvature.json`."""

    schema_: str = Field(default=SCHEMA, alias="schema")
    name: str
    headline: str
    created: str = Field(description="ISO 8601, UTC")
    command: str = Field(description="the command line, without the folders of the runs")
    metric: Literal["accuracy", "dice"]
    recipe: dict[str, Any] = Field(description="of the first run")
    settings: CurvatureSettings
    versions: dict[str, str]
    hardware: dict[str, str | int | float | None]
    rows: list[CurvatureRow]
    missing: list[Missing] = Field(default=[], description="runs of the study that are not finished")
    pruned: list[PrunedAccuracy] = Field(default=[], description="also of sparsities whose curvature was not measured")
    densities: list[Density] = Field(default=[])
    landscapes: list[Landscape] = Field(default=[])
    tracks: list[CurvatureTrack] = Field(default=[], description="of the runs trained with --track curvature")
    notes: list[str] = Field(default=[])

    def records(self) -> list[dict[str, Any]]:
        """One per network, with the fields of `CurvatureRow`; of several eigenvalues the largest."""
        return [
            {
                **row.model_dump(exclude={"eigenvalues", "residuals"}),
                "eigenvalue": row.eigenvalues[0],
                "residual": row.residuals[0],
            }
            for row in self.rows
        ]

    def to_pandas(self) -> Any:
        """`records()` as a pandas frame; ImportError where pandas (extra `frames`) is not installed."""
        return frame(self.records())

    def to_latex(self, *, caption: str = "", label: str = "tab:curvature") -> str:
        """Methods by sparsities as a LaTeX table with booktabs: the largest eigenvalue, mean and half the 95 % interval over
        seeds. Nothing is bold: a flatter network is not a better one.

        Args:
            caption: before what the numbers are; escaped.
            label: for `\\ref`.

        Raises:
            ValueError: no network was measured.
        """
        if not self.rows:
            raise ValueError(f"the summary {self.name!r} has no rows")
        sparsities = sorted({row.sparsity for row in self.rows})
        rows, counts = [], set()
        for method in dict.fromkeys(row.method for row in self.rows):
            cells = [escaped(method)]
            for sparsity in sparsities:
                own = [row.eigenvalues[0] for row in self.rows if (row.method, row.sparsity) == (method, sparsity)]
                counts |= {len(own)} - {0}
                cells.append(cell(estimate(own) if own else None, ".3g"))
            rows.append(cells)
        text = f"{escaped(caption.rstrip('. '))}. " if caption else ""
        said = f"{text}Largest eigenvalue of the Hessian by sparsity; {spread(counts)}."
        return framed(["method", *map(sparsity_head, sparsities)], rows, said, label)

    def _repr_html_(self) -> str:
        return html_table(self.records(), self.headline)

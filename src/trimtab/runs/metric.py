"""What the quality of a network is measured in: which number, which way is better, how it is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from trimtab.datasets.dataset import Task

MetricName = Literal["accuracy", "dice", "bits_per_byte"]
Column = Literal["accuracy", "bits_per_byte"]


@dataclass(frozen=True)
class Metric:
    """One way to measure quality; everything that compares or writes qualities asks it.

    Attributes:
        name: in a summary.
        word: inside a sentence.
        column: which field of `Quality` and of a row holds it.
        lower: whether less is better.
        scale: what a value is multiplied with where it is written.
        decimals: written.
        sign: after a written value, as " %".
        unit: of a difference.
        margin: so much worse than the dense baseline still counts as holding it [ours].
        costly: a dense network so much worse than the baseline's is named as a cost, certain or not [ours].
        kind: what the model hub calls such a task.

    Example:
        >>> accuracy, bits = METRICS["accuracy"], METRICS["bits_per_byte"]
        >>> accuracy.phrase(0.853), bits.phrase(2.4131)
        ('85.3 % accuracy', '2.413 bits per byte')
        >>> accuracy.gain(-0.01), bits.gain(-0.01)
        (-0.01, 0.01)
        >>> accuracy.best([0.8, 0.9]), bits.best([2.0, 3.0])
        (0.9, 2.0)
    """

    name: MetricName
    word: str
    column: Column = "accuracy"
    lower: bool = False
    scale: float = 100.0
    decimals: int = 1
    sign: str = " %"
    unit: str = "points"
    margin: float = 0.02
    costly: float = 0.01
    kind: str = "image-classification"

    @property
    def title(self) -> str:
        """At the start of a sentence."""
        return self.word[:1].upper() + self.word[1:]

    @property
    def heading(self) -> str:
        """What a column of numbers is: "accuracy in %"."""
        return f"{self.word} in %" if self.sign else self.word

    @property
    def headed(self) -> str:
        """`heading` at the start of a sentence."""
        return self.heading[:1].upper() + self.heading[1:]

    @property
    def short(self) -> str:
        """After a comma in a table's head: "%", "bits per byte"."""
        return self.sign.strip() or self.word

    @property
    def better(self) -> str:
        """Where the better values lie."""
        return "lowest" if self.lower else "highest"

    def gain(self, difference: float) -> float:
        """A difference of two values as how much better: positive is better."""
        return -difference if self.lower else difference

    def best(self, values: Iterable[float]) -> float:
        """The best of them."""
        return min(values) if self.lower else max(values)

    def number(self, value: float, *, signed: bool = False, more: int = 0) -> str:
        """As it is written, without its sign; `more` decimals."""
        return f"{self.scale * value:{'+' if signed else ''}.{self.decimals + more}f}"

    def text(self, value: float) -> str:
        """Written with its sign: "85.3 %", "2.413"."""
        return self.number(value) + self.sign

    def phrase(self, value: float) -> str:
        """Written with what it is: "85.3 % accuracy"."""
        return f"{self.text(value)} {self.word}"

    def change(self, difference: float, *, signed: bool = True) -> str:
        """A difference with its unit: "+1.2 points"."""
        return f"{self.number(difference, signed=signed)} {self.unit}"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy"),
        Metric("dice", "Dice", kind="image-segmentation"),
        Metric(
            "bits_per_byte", "bits per byte", column="bits_per_byte", lower=True, scale=1.0, decimals=3, sign="",
            unit="bits", margin=0.05, costly=0.02, kind="text-generation",
        ),
    )
}  # fmt: skip
_OF_TASKS: dict[Task, MetricName] = {
    "classification": "accuracy",
    "segmentation": "dice",
    "text": "bits_per_byte",
}


def metric_of(task: Task) -> Metric:
    """The metric of a task.

    Example:
        >>> metric_of("text").word
        'bits per byte'
    """
    return METRICS[_OF_TASKS[task]]

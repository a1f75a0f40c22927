"""What a study of number formats decides: which train, which train with help, and in which layers the others die."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.studies.precision.conclusions import IN_WORDS, Quality, quality
from trimtab.studies.precision.records import FormatRun, PrecisionStudy
from trimtab.studies.precision.variants import BASELINE, Setting

MARGIN = 0.02
"""Accuracy below full precision that still counts as training [ours]."""
DEAD = 0.5
"""Share of a layer's non-zero gradient entries rounded to zero from which the layer counts as dead [ours]."""


@dataclass(frozen=True)
class LayerLoss:
    """A layer and the share of its gradient that rounding made zero: median over steps, then over seeds."""

    name: str
    dead: float


@dataclass(frozen=True)
class FormatVerdict:
    """One number format.

    Attributes:
        format: its name.
        label: the run label that decides: the plain one, or the one that helped.
        words: "trains", "trains with ...", "dies in ...", "diverges", "loses ... points".
        trains: whether it does, with help or without.
        quality: of that label, over seeds.
        plainly: what becomes of it without that help; empty where it needs none.
        worst: layers of the plain run by how much of their gradient died, worst first.
    """

    format: str
    label: str
    words: str
    trains: bool
    quality: Quality
    plainly: str
    worst: list[LayerLoss]


def dead_layers(runs: Sequence[FormatRun]) -> list[LayerLoss]:
    """Layers in the network's order with the share of their gradient that died; none where nothing was metered."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for layer in run.shrinkage.layers if run.shrinkage else []:
            if layer.dead is not None:
                found.setdefault(layer.name, []).append(layer.dead)
    return [LayerLoss(name, sorted(values)[(len(values) - 1) // 2]) for name, values in found.items()]


def _trains(study: PrecisionStudy, label: str, margin: float) -> bool:
    found = quality(study, label)
    whole = found.finished == len(study.of(label))
    return whole and found.to_full is not None and found.to_full.mean >= -margin


SHORT: dict[object, str] = {
    **IN_WORDS,
    "tensor": "a scale",
    "mx": "MX scales",
    "channel": "channel scales",
    "block": "block scales",
}


def worst_words(one: FormatVerdict, most: int = 3) -> str:
    """The layers that lose most of their gradient when rounded plainly: `conv1 31 %, fc 12 %`."""
    worst = ", ".join(f"{_short(layer.name)} {100 * layer.dead:.0f} %" for layer in one.worst[:most] if layer.dead > 0)
    return worst or ("none dies" if one.worst else "not metered")


def _help(setting: Setting) -> str:
    parts = [SHORT[value] for value in (setting.scaling, setting.rounding) if value in SHORT]
    parts += ["compensation"] if setting.compensated else []
    parts += [f"a step {setting.step_factor:g} times as long"] if setting.step_factor != 1 else []
    return " and ".join(parts)


def _short(layer: str) -> str:
    return layer.removesuffix(".weight")


def _fails(found: Quality, dying: Sequence[LayerLoss]) -> str:
    """What becomes of a format that does not train."""
    if dying:
        return f"dies in {_short(dying[0].name)}" + (f" and {len(dying) - 1} more" if len(dying) > 1 else "")
    if found.accuracy is None:
        return "diverges"
    return "is not compared" if found.to_full is None else f"loses {100 * -found.to_full.mean:.1f} points"


def verdicts(study: PrecisionStudy, margin: float = MARGIN) -> list[FormatVerdict]:
    """A verdict for each format, in the study's order.

    A format trains when every seed finished and the mean test accuracy stays within `margin` of full precision's; where it does
    only in a variant, the variant that needs least is named. Of the others the layers are named in which at least half of
    the gradient's entries became zero.

    Args:
        study: the runs.
        margin: in accuracy. Default 2 points [ours].
    """
    settings = {run.label: run.setting for run in study.runs}
    formats = list(dict.fromkeys(s.format for s in settings.values() if s.format != BASELINE))
    found = []
    for name in formats:
        labels = [label for label, setting in settings.items() if setting.format == name]
        labels.sort(key=lambda label: len(settings[label].words()))
        plain = labels[0]
        able = [label for label in labels if _trains(study, label, margin)]
        worst = sorted(dead_layers(study.of(plain)), key=lambda layer: -layer.dead)
        dying = [layer for layer in worst if layer.dead >= DEAD]
        own = quality(study, able[0] if able else plain)
        needs = _help(settings[able[0]]) if able else ""
        fails = _fails(quality(study, plain), dying)
        words = (f"trains with {needs}" if needs else "trains") if able else fails
        found.append(
            FormatVerdict(name, able[0] if able else plain, words, bool(able), own, fails if needs else "", worst)
        )
    return found


def verdict_words(study: PrecisionStudy, found: Sequence[FormatVerdict], margin: float = MARGIN) -> str:
    """The verdict in one sentence: which formats train as they are, which with help, which do not."""
    full = quality(study, BASELINE).accuracy
    reached = "" if full is None else f" ({100 * full.mean:.1f} %)"
    groups: dict[str, list[str]] = {}
    for one in found:
        groups.setdefault(one.words if one.trains else "", []).append(one.format)
    failed = groups.pop("", [])
    clauses = []
    for words, names in groups.items():
        help = words.removeprefix("trains").strip()
        verb = "trains" if len(names) == 1 else "train"
        clauses.append(f"{_listed(names)} {verb} {help or 'as they are' if len(names) > 1 else help or 'as it is'}")
    if failed:
        clauses.append(f"{_listed(failed)} {'does' if len(failed) == 1 else 'do'} not")
    return f"Within {100 * margin:g} points of full precision{reached}: {'; '.join(clauses)}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

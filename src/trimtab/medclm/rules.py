"""Rules of host organs: hierarchy, allow-lists, sides and zones, by anatomy."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Literal, Self

from pydantic import model_validator

from trimtab.checks import number
from trimtab.medclm.findings import FINDINGS, LUNGS, RETINA_PARTS, finding_of, tidied
from trimtab.medclm.places import Convention, Zones
from trimtab.medclm.records import Record

RuleName = Literal["inside_fraction", "mask_iou", "box_iou"]


class HostRules(Record):
    """How hosts are decided. All defaults are ours.

    Attributes:
        rule: "inside_fraction" = area of the box inside the mask / area of the box; "mask_iou" = intersection over union of
            box and mask; "box_iou" = that of the box and the smallest box around the mask. Of the organs that reach
            `minimum`, `inside_fraction` drops every one that contains another by `parents` (the most specific wins); then
            the highest score wins; equal scores go to the more specific organ, then to the first by name.
        minimum: least score of a host, in (0, 1]; without it 0.5 for "inside_fraction", anything above 0 for the others.
        parents: organ -> the organ that contains it, such as "right lung" -> "thorax".
        allowed: lesion class -> organs it may lie in; an organ inside an allowed one is allowed too, and a class without
            organs has no host. Any spelling of a class that `findings` knows stands for it ("Nodules" for "nodule"). Where
            the list is empty all classes may lie anywhere; else a class that is not listed has no host.
        reach: without a host the nearest allowed organ is taken, flagged "host_fallback", if it is no farther from the box
            than this fraction of the image's diagonal; else the organ is "unknown". 0 allows only organs the box touches.
        convention: "radiological" (the patient's right is on the left of the picture), "neurological" (not mirrored), "eye"
            (which eye it is, from the optic disc), or "none".
        zones: "lung_thirds", "disc_distance" or "none"; see `places`.
    """

    rule: RuleName = "inside_fraction"
    minimum: float | None = None
    parents: Mapping[str, str] = {}
    allowed: Mapping[str, tuple[str, ...]] = {}
    reach: float = 0.05
    convention: Convention = "radiological"
    zones: Zones = "none"

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.minimum is not None:
            number("minimum", self.minimum, above=0, most=1)
        number("reach", self.reach, least=0, most=1)
        for organ in self.parents:
            chain = [organ]
            while chain[-1] in self.parents:
                chain.append(self.parents[chain[-1]])
                if chain.count(chain[-1]) > 1:
                    raise ValueError(f"parents form a circle: {' -> '.join(chain)}")
        return self

    def ancestors(self, organ: str) -> tuple[str, ...]:
        """The organs that contain `organ`, nearest first."""
        chain: list[str] = []
        while (organ := self.parents.get(organ, "")) != "":
            chain.append(organ)
        return tuple(chain)

    def class_of(self, label: str) -> str:
        """The name of a class in records and texts: as the allow-list has it, whatever its spelling; else tidied.

        >>> host_rules("chest").class_of("Effusion"), host_rules("general").class_of("Effusion")
        ('pleural effusion', 'effusion')
        """
        return self._listed_name(label) or tidied(label)

    def organs_of(self, label: str) -> tuple[str, ...] | None:
        """The organs that may hold a class; None where any may: the list is empty. Of a class that is not listed: none."""
        if not self.allowed:
            return None
        name = self._listed_name(label)
        return () if name is None else self._names[name.lower()][1]

    def lists(self, label: str) -> bool:
        """Whether the allow-list has the class, or is empty."""
        return not self.allowed or self._listed_name(label) is not None

    def allows(self, label: str, organ: str) -> bool:
        """Whether a lesion of class `label` may lie in `organ`."""
        listed = self.organs_of(label)
        return listed is None or organ in listed or any(parent in listed for parent in self.ancestors(organ))

    def _listed_name(self, label: str) -> str | None:
        for name in (tidied(label).lower(), _meaning(label)):
            if name in self._names:
                return self._names[name][0]
        return None

    @cached_property
    def _names(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Tidied name, and name of the finding that is meant -> (tidied name, organs); the former goes first."""
        listed = [(tidied(label), tuple(organs)) for label, organs in self.allowed.items()]
        return {
            **{_meaning(name): (name, organs) for name, organs in listed},
            **{one[0].lower(): one for one in listed},
        }


def _meaning(label: str) -> str:
    """What all spellings of a class have in common."""
    finding = finding_of(label)
    return (finding.name if finding is not None else tidied(label)).lower()


_CHEST_PARENTS = {
    **{f"{side} {part} lobe": f"{side} lung" for side in ("left", "right") for part in ("upper", "middle", "lower")},
    **dict.fromkeys((*LUNGS, "heart", "ribs", "spine", "diaphragm", "mediastinum", "aorta"), "thorax"),
}

PRESETS: Mapping[str, HostRules] = {
    "general": HostRules(),
    "chest": HostRules(
        parents=_CHEST_PARENTS,
        allowed={one.name: one.organs for one in FINDINGS if one.anatomy == "chest"},
        zones="lung_thirds",
    ),
    "retina": HostRules(
        parents={**dict.fromkeys((*RETINA_PARTS, "optic disc"), "retina")},
        allowed={one.name: one.organs for one in FINDINGS if one.anatomy == "retina"},
        convention="eye",
        zones="disc_distance",
    ),
}


def host_rules(
    preset: str, rule: RuleName = "inside_fraction", allowed: Mapping[str, tuple[str, ...]] | None = None
) -> HostRules:
    """The rules called `preset`, deciding by `rule`.

    Args:
        preset: general, chest or retina.
        rule: see `HostRules`.
        allowed: further classes -> organs they may lie in, beside or instead of those of the preset.

    Raises:
        ValueError: there is no such preset or rule.

    >>> host_rules("chest").ancestors("right upper lobe")
    ('right lung', 'thorax')
    """
    if preset not in PRESETS:
        raise ValueError(f"no host rules are called {preset!r}; there are {', '.join(PRESETS)}")
    further = {label: tuple(organs) for label, organs in (allowed or {}).items()}
    meant = {_meaning(label) for label in further}
    kept = {label: organs for label, organs in PRESETS[preset].allowed.items() if _meaning(label) not in meant}
    changed = {"rule": rule, "allowed": {**kept, **further} if kept else {}}
    if further and not kept:
        raise ValueError(
            f"the rules {preset!r} have no allow-list to add {', '.join(further)} to: all may lie anywhere"
        )
    return HostRules.model_validate({**PRESETS[preset].model_dump(), **changed})


_WARNED: set[str] = set()


def warn_unlisted(labels: Iterable[str], rules: HostRules) -> tuple[str, ...]:
    """The classes that the allow-list does not have, with one warning (a class is warned of once in a process)."""
    unlisted = tuple(sorted({label for label in labels if not rules.lists(label)}))
    new = [label for label in unlisted if label not in _WARNED]
    if new:
        _WARNED.update(new)
        warnings.warn(
            f"no organ is known for the classes {', '.join(map(repr, new))}: their hosts stay unknown; say where they may lie "
            '(`allowed`, --host-in CLASS=ORGANS), or take the rules "general"',
            stacklevel=3,
        )
    return unlisted

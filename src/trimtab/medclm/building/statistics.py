"""Counts of a data set, and how far a guess from the text alone gets."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from trimtab.medclm.guessing import NearestBoxes
from trimtab.medclm.records import ImageRecord, Row
from trimtab.medclm.texts.wording import boxes_in, known

_BOX = re.compile(r"\[[^\]]*\]")


class Statistics:
    """Counts records and rows one by one; the state grows with the number of different values, and with the questions that
    quote a box: their numbers are kept.

    The prior of a question type is the accuracy of guessing, for each wording of the question (boxes taken out), the answer
    that is most common among training rows of the same stage: on the training rows, and on validation and test rows together
    ("unseen"). Beside it, on unseen rows, the guess that reads the numbers of the quoted box too (`guessing.NearestBoxes`);
    questions without a box are guessed as before.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._answers: dict[str, dict[tuple[str, str, str], Counter[str]]] = {"train": {}, "unseen": {}}
        self._nearest = NearestBoxes()
        self._unseen: list[tuple[tuple[str, str, str], str, str, str]] = []
        self.images = self.lesions = self.rows = 0

    def add_record(self, record: ImageRecord) -> None:
        """Count one image."""
        self.images += 1
        self.lesions += len(record.lesions)
        self._counts["images by split"][record.split] += 1
        self._counts["images with lesions"]["yes" if record.lesions else "no (negatives)"] += 1
        for lesion in record.lesions:
            self._counts["lesions by class"][lesion.label] += 1
            host = known(lesion.host)
            self._counts["lesions by organ"][host.organ if host is not None else "unknown"] += 1
            self._counts["lesions by side"][(host.side if host is not None else None) or "none"] += 1
            self._counts["lesions by zone"][(host.zone if host is not None else None) or "none"] += 1
            for flag in lesion.flags:
                self._counts["lesions by flag"][flag] += 1

    def add_row(self, row: Row) -> None:
        """Count one row."""
        self.rows += 1
        self._counts["rows by stage"][row.stage] += 1
        self._counts["rows by split"][row.split] += 1
        self._counts["rows by domain"][row.domain] += 1
        self._counts["rows by question type"][row.question_type] += 1
        self._counts["rows by stage and type"][f"{row.stage} {row.question_type}"] += 1
        if row.answer in ("yes", "no"):
            self._counts["yes and no"][row.answer] += 1
            self._counts["yes and no by stage"][f"{row.stage} {row.answer}"] += 1
        asked = (row.stage, row.question_type, _BOX.sub("[box]", row.question))
        part = "train" if row.split == "train" else "unseen"
        self._answers[part].setdefault(asked, Counter())[row.answer] += 1
        if boxes_in(row.question):
            if part == "train":
                self._nearest.add(row.stage, row.question_type, row.domain, row.question, row.answer)
            else:
                self._unseen.append((asked, row.domain, row.question, row.answer))

    def priors(self) -> dict[str, dict[str, Any]]:
        """Question type (and "all") -> rows, different answers, accuracy of the guess on training and on unseen rows, without
        and with the numbers of the box.
        """
        guess = {asked: found.most_common(1)[0][0] for asked, found in self._answers["train"].items()}
        tally: dict[str, Counter[str]] = defaultdict(Counter)
        different: dict[str, set[str]] = defaultdict(set)
        for part, questions in self._answers.items():
            for asked, found in questions.items():
                for kind in (asked[1], "all"):
                    tally[kind][part] += found.total()
                    tally[kind][f"{part} right"] += found[guess[asked]] if asked in guess else 0
                    different[kind] |= set(found)
        gained: Counter[str] = Counter()  # right answers that the numbers add to those of the text, by type
        for asked, domain, question, answer in self._unseen:
            by_text = guess.get(asked)
            by_box = self._nearest.answer(asked[0], asked[1], domain, question) or by_text
            for kind in (asked[1], "all"):
                gained[kind] += (by_box == answer) - (by_text == answer)
        return {
            kind: {
                "rows": count["train"] + count["unseen"],
                "answers": len(different[kind]),
                "train": _share(count["train right"], count["train"]),
                "unseen": _share(count["unseen right"], count["unseen"]),
                "unseen, box numbers read": _share(count["unseen right"] + gained[kind], count["unseen"]),
                "unseen rows": count["unseen"],
            }
            for kind, count in sorted(tally.items(), key=lambda item: (item[0] == "all", item[0]))
        }

    def summary(
        self, rejected: Mapping[str, int], left_out: Mapping[str, int], usage: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Everything as plain data, counts in falling order."""
        counts = {name: dict(found.most_common()) for name, found in sorted(self._counts.items())}
        return {
            "images": self.images,
            "lesions": self.lesions,
            "rows": self.rows,
            **counts,
            "priors": self.priors(),
            "rejected by reason": dict(sorted(rejected.items(), key=lambda item: -item[1])),
            "not asked": dict(sorted(left_out.items(), key=lambda item: -item[1])),
            "generator": dict(usage),
        }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None

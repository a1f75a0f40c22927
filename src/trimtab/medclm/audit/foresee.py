"""How many requests an audit would make, and how many of their replies are kept already; nothing is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.medclm.audit.options import AuditOptions
from trimtab.medclm.audit.run import requests_of
from trimtab.medclm.evaluation.questions import Question
from trimtab.medclm.texts.replies import ReplyCache


@dataclass(frozen=True)
class ForeseenAudit:
    """What an audit would ask.

    Attributes:
        questions: asked on three pictures each.
        requests: different ones; equal texts on equal grey pictures are one.
        kept: of these, whose reply is in the folder.
        tokens: of the replies still to come, at most.
    """

    questions: int
    requests: int
    kept: int
    tokens: int


def foresee_audit(
    identity: Mapping[str, Any], questions: Sequence[Question], cache: Path, options: AuditOptions
) -> ForeseenAudit:
    """Count, without asking.

    Args:
        identity: of the model, as its `Subject` has it.
        questions, cache, options: as for `audit`.

    Raises:
        ValueError: there are no questions, or a kept reply is damaged.
    """
    groups = requests_of(identity, questions, options)
    most = {one.key: one.most for requests in groups.values() for one in requests.values()}
    replies = ReplyCache(cache)
    kept = {key for key in most if replies.known(key) is not None}
    left = sum(tokens for key, tokens in most.items() if key not in kept)
    return ForeseenAudit(len(next(iter(groups.values()))), len(most), len(kept), left)

"""Asking one model many questions: what cannot be answered is named, what cannot succeed stops before it is paid for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trimtab.medclm.audit.options import AuditOptions
from trimtab.medclm.audit.requests import Request
from trimtab.medclm.audit.subjects import Subject
from trimtab.medclm.evaluation.parsing import parse_reply
from trimtab.medclm.texts.generator import GenerationError
from trimtab.medclm.texts.replies import Reply, ReplyCache

ENOUGH = 20
"""Replies without a box, of those that were asked for one, after which an audit stops (ours)."""
REFUSED = 3
"""Questions in a row from the start that a server cannot answer, after which an audit stops (ours)."""


def asked(
    subject: Subject,
    requests: Mapping[int, Request],
    cache: ReplyCache,
    watch: Watch,
    failed: dict[str, str],
    tell: Callable[[int], None] | None,
) -> dict[int, Reply]:
    """The replies by place; what could not be answered goes into `failed`. Short prompts come first, like with like."""
    order = sorted(requests, key=lambda place: (requests[place].most, len(requests[place].prompt)))
    found: dict[int, Reply] = {}
    replies = subject.replies([requests[place] for place in order], cache)
    for done, (place, reply) in enumerate(zip(order, replies, strict=True), start=1):
        if isinstance(reply, GenerationError):
            name, why = requests[place].question.name, f"{reply.rejected.reason}: {reply.rejected.value}"
            failed[name] = why
            if not found and done >= min(REFUSED, len(order)):
                raise ValueError(f"the model answers none of the first {done} questions; of question {name!r}: {why}")
        else:
            found[place] = reply
            watch.look(requests[place], reply)
        if tell is not None:
            tell(done)
    watch.end()
    return found


class Watch:
    """Stops an audit of boxes whose replies have none, before all of them are paid for."""

    def __init__(self, options: AuditOptions, *, on: bool) -> None:
        self._options, self._on, self._asked, self._found = options, on, 0, 0

    def look(self, request: Request, reply: Reply) -> None:
        """Count one more reply."""
        if self._on and request.question.reason and request.question.box is not None:
            self._asked += 1
            self._found += bool(parse_reply(self._options.read(request.question, reply)).boxes)
            if self._asked == ENOUGH:
                self.end()

    def end(self) -> None:
        """Refuse to go on if boxes were asked for and none came."""
        if self._on and self._asked and not self._found:
            assert self._options.boxes is not None
            how = self._options.boxes.format.convention
            raise ValueError(
                f"not one of {self._asked} replies that were asked for a box gives one as {how}, "
                "so there is nothing to measure IoU on: --boxes names another format, --boxes none audits without"
            )

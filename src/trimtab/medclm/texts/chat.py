"""ChatGenerator: a chat model words the facts; any server that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import mimetypes
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trimtab.medclm.records import ImageRecord, Lesion, Row, Stage
from trimtab.medclm.texts.asking import Ask, asks, counted
from trimtab.medclm.texts.generator import GenerationError, Text, finished_row, row_name, seed_of
from trimtab.medclm.texts.replies import Reply, ReplyCache, prompt_hash
from trimtab.medclm.texts.server import ChatServer, data_url, image_part
from trimtab.medclm.texts.template import TemplateGenerator
from trimtab.medclm.texts.wording import known, quoted, seed_text, shown

INSTRUCTIONS = """You word one question for a data set that teaches a vision-language model to read medical images.
You are given facts and a draft. Keep every fact. Change only the wording, so that it reads like a careful radiologist.
Rules:
- "question": ask what the draft asks. Never give the answer away. Quote the box exactly as given if and only if the draft's question does.
- "reasoning": three to six sentences in the order look, locate, organ, describe, conclude. Quote the box exactly as given, and no other box; where "counted" lists boxes, quote each of these. The last sentence states the answer word for word. Leave empty if the draft's reasoning is empty.
- "answer": exactly the given answer.
- Sides are the patient's. Add no finding, diagnosis, severity or measurement that the facts do not have. Write English."""  # noqa: E501

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("question", "reasoning", "answer")},
    "required": ["question", "reasoning", "answer"],
    "additionalProperties": False,
}


class _Worded(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    question: str
    reasoning: str
    answer: str


class ChatGenerator:
    """Lets a chat model word the draft of `TemplateGenerator`, image attached, JSON schema asked for.

    What is asked and what the answer is stay the record's; `quality.QualityControl` then checks the text. Status 408, 409, 429
    and 5xx, lost connections and timeouts are tried again with growing pauses (a Retry-After of the server is kept to). A reply
    that is no valid JSON, or is cut off, is asked for again as a new attempt, at most `attempts` times; a refusal is not. Every
    reply, good or bad, is kept in `cache` first, so nothing is paid twice, also after a kill.

    Args:
        model: name of the model.
        images: folder of the images.
        cache: folder of replies; may be shared between builds.
        base_url: the server.
        api_key: its key; without it the environment variable OPENAI_API_KEY.
        attempts: replies asked for at most until one is valid JSON.
        retries: tries at most until the server replies.
        timeout: seconds to wait for a reply.
        longest_pause: seconds between two tries at most.
        temperature: of the sampling.
        max_tokens: longest reply.
        price_in, price_out: price of a million tokens, for `usage`.

    Raises:
        ValueError: no model named, or a number below 1.
    """

    name = "chat"

    def __init__(
        self,
        model: str,
        images: Path,
        cache: Path,
        base_url: str | None = None,
        api_key: str | None = None,
        attempts: int = 3,
        retries: int = 6,
        timeout: float = 120.0,
        longest_pause: float = 60.0,
        temperature: float = 0.7,
        max_tokens: int = 800,
        price_in: float = 0.0,
        price_out: float = 0.0,
    ) -> None:
        if not model:
            raise ValueError("ChatGenerator needs the name of a model (--chat.model)")
        if min(attempts, retries, max_tokens) < 1:
            raise ValueError("attempts, retries and max_tokens must be 1 or more")
        self.server = ChatServer(base_url, api_key, retries, timeout, longest_pause)
        self.model, self.images, self.cache = model, images, ReplyCache(cache)
        self._attempts = attempts
        self._settings = {"temperature": temperature, "max_tokens": max_tokens}
        self._prices = (price_in, price_out)
        self._template = TemplateGenerator()

    def generate(
        self,
        record: ImageRecord,
        lesion: Lesion | None,
        stage: Stage,
        seed: int,
        ask: Ask | None = None,
        anchor: Lesion | None = None,
    ) -> Row:
        """The row; see `Generator`.

        Raises:
            GenerationError: the model refused, gave no valid JSON in all attempts, or the server did not reply.
        """
        if ask is None:
            possible = asks(record, lesion, stage, {other.label for other in record.lesions})
            if not possible:
                raise ValueError(f"nothing can be asked about {record.image_id!r} at stage {stage} without ambiguity")
            ask = random.Random(f"{seed}/{record.image_id}").choice(possible)
        name = row_name(record, lesion, stage, ask)
        draft = self._template.generate(record, lesion, stage, seed, ask, anchor)
        request = self._request(record, lesion, stage, ask, draft, seed_of(seed, name))
        image = self.images / record.file
        key = prompt_hash({**request, "image": _image_hash(image)})
        for attempt in range(self._attempts):
            reply = self.cache.get(key, attempt, lambda: self.server.ask(name, self._body(request, image)))
            if reply.refusal or reply.finish == "content_filter":
                raise GenerationError(name, "the model refused", self.server.said(reply.refusal or reply.finish))
            text = _parsed(reply)
            if text is not None:
                return finished_row(
                    text, record, lesion, stage, seed_of(seed, name), ask, f"chat:{self.model}", key, anchor
                )
        raise GenerationError(name, "no valid JSON in all attempts", self.server.said(reply.text))

    def usage(self) -> dict[str, Any]:
        """Replies in the cache, their tokens and cost, over all runs; tries repeated in this run."""
        paid = self.cache.totals()
        cost = (paid["prompt_tokens"] * self._prices[0] + paid["completion_tokens"] * self._prices[1]) / 1e6
        return {"model": self.model, **paid, "cost": cost, "repeated tries": self.server.repeated}

    def _request(
        self, record: ImageRecord, lesion: Lesion | None, stage: Stage, ask: Ask, draft: Row, seed: int
    ) -> dict[str, Any]:
        host = known(lesion.host) if lesion is not None else None
        facts = {
            "modality": record.modality,
            "stage": stage,
            "question type": ask.kind,
            "class": shown(ask.label),
            "box": quoted(lesion.box) if lesion is not None else None,
            "counted": [quoted(one.box) for one in counted(record, ask)] if stage != "hard" else [],
            "organ": host.organ if host is not None else None,
            "side": host.side if host is not None else None,
            "zone": host.zone if host is not None else None,
            "seed": seed_text(record, lesion),
            "draft": {"question": draft.question, "reasoning": draft.reasoning},
            "answer": ask.answer,
        }
        return {
            "model": self.model,
            "instructions": INSTRUCTIONS,
            "facts": json.dumps(facts, ensure_ascii=False),
            "schema": SCHEMA,
            "seed": seed,
            **self._settings,
        }

    def _body(self, request: dict[str, Any], image: Path) -> dict[str, Any]:
        """What is sent: the request with the picture as data."""
        schema = {"name": "row", "strict": True, "schema": request["schema"]}
        facts, picture = {"type": "text", "text": request["facts"]}, image_part(_data_url(image))
        return {
            "model": request["model"],
            "messages": [
                {"role": "system", "content": request["instructions"]},
                {"role": "user", "content": [facts, picture]},
            ],
            "response_format": {"type": "json_schema", "json_schema": schema},
            **{name: request[name] for name in ("seed", "temperature", "max_tokens")},
        }


def _parsed(reply: Reply) -> Text | None:
    if reply.finish == "length":
        return None
    try:
        worded = _Worded.model_validate_json(reply.text)
    except ValidationError:
        return None
    return Text(worded.question.strip(), worded.reasoning.strip(), worded.answer.strip())


@lru_cache(maxsize=8)
def _data_url(image: Path) -> str:
    return data_url(image.read_bytes(), mimetypes.guess_type(image.name)[0] or "image/png")


@lru_cache(maxsize=8)
def _image_hash(image: Path) -> str:
    return prompt_hash({"image": _data_url(image)})

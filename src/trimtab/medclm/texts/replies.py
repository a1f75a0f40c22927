"""Replies of a chat server on disk: none is asked for, and paid, twice."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from trimtab.files import write_text
from trimtab.inputs import named, utf8


class Reply(BaseModel):
    """One reply as the server gave it, good or bad.

    Attributes:
        text: content of the message; "" for a refusal.
        refusal: what the model said instead, or "".
        finish: why it stopped ("stop", "length", "content_filter").
        prompt_tokens, completion_tokens: as the server counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    refusal: str = ""
    finish: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0


def prompt_hash(request: Mapping[str, Any]) -> str:
    """SHA-256 of a request as sorted JSON: model, messages, image, schema, settings.

    >>> prompt_hash({"b": 1, "a": 2}) == prompt_hash({"a": 2, "b": 1})
    True
    """
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class ReplyCache:
    """One file per request and attempt, FOLDER/ab/abcdef...-ATTEMPT.json, written before the reply is used.

    Two threads that ask the same wait for one another. A kill between the server's reply and the file costs that one reply.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.guard = threading.Lock()
        self.locks: dict[str, tuple[threading.Lock, int]] = {}

    def get(self, key: str, attempt: int, ask: Callable[[], Reply]) -> Reply:
        """The reply from its file, or from `ask`.

        Raises:
            ValueError: the file of a reply is damaged; delete it to ask again. Errors of `ask` pass through.
        """
        path = self._file(key, attempt)
        with self._held(path.name):
            if path.is_file():
                return _read(path)
            reply = ask()
            write_text(path, reply.model_dump_json())
            return reply

    def known(self, key: str, attempt: int = 0) -> Reply | None:
        """The reply on disk, if there is one.

        Raises:
            ValueError: its file is damaged.
        """
        path = self._file(key, attempt)
        return _read(path) if path.is_file() else None

    def _file(self, key: str, attempt: int) -> Path:
        return self.folder / key[:2] / f"{key}-{attempt}.json"

    def totals(self) -> dict[str, int]:
        """Number of replies on disk and the sums of their tokens."""
        found = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
        for path in self.folder.glob("*/*.json"):
            reply = _read(path)
            found["requests"] += 1
            found["prompt_tokens"] += reply.prompt_tokens
            found["completion_tokens"] += reply.completion_tokens
        return found

    def _held(self, name: str) -> _Held:
        return _Held(self, name)


def _read(path: Path) -> Reply:
    with named(path, "is not a reply; delete it to ask again"):
        return Reply.model_validate_json(utf8(path))


class _Held:
    """The lock of one request; dropped when nobody waits, so that locks do not pile up."""

    def __init__(self, cache: ReplyCache, name: str) -> None:
        self._cache, self._name = cache, name

    def __enter__(self) -> None:
        with self._cache.guard:
            lock, users = self._cache.locks.get(self._name, (threading.Lock(), 0))
            self._cache.locks[self._name] = (lock, users + 1)
        self._lock = lock
        lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        with self._cache.guard:
            lock, users = self._cache.locks[self._name]
            if users == 1:
                del self._cache.locks[self._name]
            else:
                self._cache.locks[self._name] = (lock, users - 1)

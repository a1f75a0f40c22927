"""Who is audited: a model behind a server, or one in a folder that transformers reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trimtab.checks import whole
from trimtab.medclm.audit.requests import Request, picture_bytes
from trimtab.medclm.building.launchers import run_threads
from trimtab.medclm.evaluation.generation import generated, generated_alone, picture_of
from trimtab.medclm.texts.generator import GenerationError
from trimtab.medclm.texts.replies import Reply, ReplyCache
from trimtab.medclm.texts.server import SILENT, ChatServer, data_url, image_part


class Subject(Protocol):
    """A model under audit.

    Attributes:
        name: for the report.
        identity: what its replies depend on besides the request; another identity is asked anew.
    """

    name: str
    identity: Mapping[str, Any]

    def replies(self, requests: Sequence[Request], cache: ReplyCache) -> Iterator[Reply | GenerationError]:
        """The reply to each request in order, from the cache where it is there, else asked for and kept; an error where the
        model cannot reply to this one request."""
        ...


class ServedModel:
    """A model behind a server that speaks OpenAI's chat protocol (vLLM, llama.cpp, Ollama, OpenAI ...).

    Args:
        model: its name there.
        server: how it is reached.
        concurrency: requests at a time.
        options: more fields of a request; None takes a field out, such as {"temperature": None}.

    Raises:
        ValueError: no model is named, or `concurrency` is below 1.
    """

    def __init__(
        self, model: str, server: ChatServer, concurrency: int = 4, options: Mapping[str, Any] | None = None
    ) -> None:
        if not model:
            raise ValueError("the model needs a name, the one it has at the server")
        whole("concurrency", concurrency, 1)
        self.name, self.server, self._threads = model, server, concurrency
        self._options = dict(options or {})
        self.identity: Mapping[str, Any] = {"server": server.address, "model": model, "options": self._options}

    def replies(self, requests: Sequence[Request], cache: ReplyCache) -> Iterator[Reply | GenerationError]:
        """See `Subject`.

        Raises:
            ValueError: the server does not reply at all, refuses every request, or speaks another protocol.
        """

        def reply(request: Request) -> Reply | GenerationError:
            name = request.question.name
            try:
                return cache.get(request.key, 0, lambda: self.server.ask(name, self._body(request)))
            except GenerationError as error:
                if error.rejected.reason != SILENT:
                    return error
                raise ValueError(
                    f"the server {self.server.address} did not reply within {self.server.timeout:g} s, asked "
                    f"{self.server.retries} times about question {name!r} ({error.rejected.value}); replies so far are kept "
                    f"in {cache.folder}: the same command goes on"
                ) from error

        yield from run_threads(reply, requests, self._threads)

    def _body(self, request: Request) -> dict[str, Any]:
        picture, kind = picture_bytes(request.question)
        content = [image_part(data_url(picture, kind)), {"type": "text", "text": request.prompt}]
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0.0,
            "max_tokens": request.most,
            **self._options,
        }
        return {name: value for name, value in body.items() if value is not None}


class FolderModel:
    """A model that transformers reads, from a run of `trimtab medclm train`, any folder, or a name on the hub; greedy.

    Families that `trimtab medclm train` knows answer in batches, others one question at a time.

    Args:
        folder: where it lies.
        batch: questions at a time.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: `batch` is below 1, or the folder holds no vision-language model.
    """

    def __init__(self, folder: Path, batch: int = 32) -> None:
        from trimtab.medclm.training.models import FAMILIES, load_finished  # transformers

        whole("batch", batch, 1)
        self.name, self._batch = str(folder), batch
        self._model, self._processor = load_finished(folder, known=False)
        self._together = self._model.config.model_type in FAMILIES
        self.identity: Mapping[str, Any] = folder_identity(folder)

    def replies(self, requests: Sequence[Request], cache: ReplyCache) -> Iterator[Reply | GenerationError]:
        """See `Subject`."""
        for start in range(0, len(requests), self._batch):
            chunk = requests[start : start + self._batch]
            new = {one.key: one for one in chunk if cache.known(one.key) is None}
            for most, group in itertools.groupby(sorted(new.values(), key=lambda one: one.most), lambda one: one.most):
                asked = list(group)
                for one, text in zip(asked, self._texts(asked, most), strict=True):
                    cache.get(one.key, 0, lambda text=text: Reply(text=text))  # type: ignore[misc]
            for one in chunk:
                found = cache.known(one.key)
                assert found is not None
                yield found

    def _texts(self, asked: Sequence[Request], most: int) -> list[str]:
        prompts, pictures = [one.prompt for one in asked], [picture_of(one.question) for one in asked]
        if self._together:
            return generated(self._model, self._processor, prompts, pictures, most)
        return [
            generated_alone(self._model, self._processor, prompt, picture, most)
            for prompt, picture in zip(prompts, pictures, strict=True)
        ]


def folder_identity(folder: Path) -> dict[str, Any]:
    """What `FolderModel` is known by: names, sizes and times of a model's files; weights of gigabytes are not read for it."""
    from trimtab.medclm.training.models import model_folder  # transformers

    folder = model_folder(folder)
    if not folder.is_dir():
        return {"hub": str(folder)}
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return {"files": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]}

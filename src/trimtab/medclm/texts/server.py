"""A server that speaks OpenAI's chat protocol: asked again where that may help, its key never repeated."""

from __future__ import annotations

import base64
import threading
from typing import Any

from trimtab.inputs import named
from trimtab.medclm.texts.generator import GenerationError
from trimtab.medclm.texts.replies import Reply

SILENT = "the server did not reply"


class ChatServer:
    """Sends chat requests. Status 408, 409, 429 and 5xx, lost connections and timeouts are tried again with growing pauses, a
    Retry-After of the server is kept to.

    Args:
        base_url: the server; without it OpenAI's, or the environment variable OPENAI_BASE_URL.
        api_key: its key; without it the environment variable OPENAI_API_KEY.
        retries: tries at most until the server replies.
        timeout: seconds to wait for a reply.
        longest_pause: seconds between two tries at most.

    Raises:
        ValueError: there is no key.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        retries: int = 6,
        timeout: float = 120.0,
        longest_pause: float = 60.0,
    ) -> None:
        import openai

        try:
            self._client = openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=timeout)
        except openai.OpenAIError as error:
            raise ValueError(f"no key for the server: {error}") from error
        self.retries, self.timeout, self._longest = retries, timeout, longest_pause
        self.repeated = 0
        self._guard = threading.Lock()

    @property
    def address(self) -> str:
        """Where it is."""
        return str(self._client.base_url).rstrip("/")

    def ask(self, name: str, body: dict[str, Any]) -> Reply:
        """The reply to one request, good or bad.

        Args:
            name: of what is asked, for the error.
            body: arguments of `chat.completions.create`.

        Raises:
            ValueError: the server refuses every request (401, 403, 404), or what it says is no chat completion.
            GenerationError: it did not reply (`SILENT`), or answered with another status.
        """
        import openai
        from tenacity import Retrying, retry_if_exception, stop_after_attempt
        from tenacity.wait import wait_random_exponential

        backoff = wait_random_exponential(multiplier=0.5, max=self._longest)

        def pause(state: Any) -> float:
            with self._guard:
                self.repeated += 1
            return max(backoff(state), min(_retry_after(state.outcome.exception()), self._longest))

        tries = Retrying(
            stop=stop_after_attempt(self.retries), wait=pause, retry=retry_if_exception(_may_pass), reraise=True
        )
        try:
            return tries(self._send, body)
        except openai.APIStatusError as error:
            if error.status_code in (401, 403, 404):
                raise ValueError(
                    f"the server refuses every request: {error.status_code} {self.said(error.message)}"
                ) from None
            raise GenerationError(name, f"the server answered {error.status_code}", self.said(error.message)) from None
        except openai.APIConnectionError as error:
            raise GenerationError(name, SILENT, self.said(error.__cause__ or error)) from None

    def said(self, text: object) -> str:
        """The start of what a server said, without the key: some repeat it, and this goes into files and terminals."""
        key = self._client.api_key
        return (str(text).replace(key, "(the key)") if key else str(text))[:200]

    def _send(self, body: dict[str, Any]) -> Reply:
        with named(self.address, "does not speak OpenAI's chat protocol"):
            completion = self._client.chat.completions.create(**body)
            choices = completion.choices
            choice = choices[0] if choices else None
            usage = completion.usage
        return Reply(
            text=(choice.message.content or "") if choice is not None else "",
            refusal=(getattr(choice.message, "refusal", None) or "") if choice is not None else "",
            finish=(getattr(choice, "finish_reason", None) or "stop") if choice is not None else "empty",
            prompt_tokens=usage.prompt_tokens if usage is not None else 0,
            completion_tokens=usage.completion_tokens if usage is not None else 0,
        )


def image_part(url: str) -> dict[str, Any]:
    """The part of a message that shows a picture."""
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(picture: bytes, kind: str) -> str:
    """A picture as data.

    >>> data_url(b"abc", "image/png")
    'data:image/png;base64,YWJj'
    """
    return f"data:{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _may_pass(error: BaseException) -> bool:
    import openai

    if isinstance(error, openai.APIConnectionError):  # timeouts too
        return True
    return isinstance(error, openai.APIStatusError) and (
        error.status_code in (408, 409, 429) or error.status_code >= 500
    )


def _retry_after(error: BaseException | None) -> float:
    response = getattr(error, "response", None)
    try:
        return max(float(response.headers.get("retry-after", 0)), 0.0) if response is not None else 0.0
    except ValueError:
        return 0.0

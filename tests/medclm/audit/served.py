"""A server on loopback that speaks OpenAI's chat protocol and says what a function of prompt and picture says."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

from PIL import Image

Says = Callable[[str, Image.Image], "str | int | dict[str, Any]"]


class Served:
    """`says` gives the text of a reply, a status, or a choice of its own; `bodies` holds what was asked."""

    def __init__(self, says: Says) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.hung = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                picture, text = body["messages"][0]["content"]
                shown = Image.open(BytesIO(base64.b64decode(picture["image_url"]["url"].partition(",")[2])))
                self._send(body["model"], says(text["text"], shown))

            def _send(self, model: str, said: str | int | dict[str, Any]) -> None:
                if said == "hang":
                    outer.hung.wait()
                    return
                message = said if isinstance(said, str) else ""
                choice = {"index": 0, "message": {"role": "assistant", "content": message}, "finish_reason": "stop"}
                data: Any = {"id": "1", "object": "chat.completion", "created": 0, "model": model}
                data["choices"] = [{**choice, **said} if isinstance(said, dict) else choice]
                data["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
                if isinstance(said, int):
                    data = {"error": {"message": f"status {said}"}}
                page = message == "page"
                payload = b"<html></html>" if page else json.dumps(data).encode()
                self.send_response(said if isinstance(said, int) else 200)
                self.send_header("Content-Type", "text/html" if page else "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@contextmanager
def served(says: Says) -> Iterator[Served]:
    """The server, for as long as the block lasts."""
    found = Served(says)
    try:
        yield found
    finally:
        found.hung.set()
        found.http.shutdown()
        found.http.server_close()


def side_of(picture: Image.Image) -> str:
    """On which side the blob of `tests.medclm.training.blobs` is; right where there is none."""
    grey = picture.convert("L").point(lambda value: 255 * (value > 200))
    box = grey.getbbox()
    return "left" if box is not None and box[0] + box[2] < picture.width else "right"


def seer(prompt: str, picture: Image.Image) -> str:
    """Looks, and reasons with the blob's box where asked to."""
    side = side_of(picture)
    if "sentences" not in prompt:
        return f"Answer: {side}"
    box = picture.convert("L").point(lambda value: 255 * (value > 200)).getbbox() or (0, 0, 8, 8)
    corners = ", ".join(f"{at / length:.4f}" for at, length in zip(box, picture.size * 2, strict=True))
    return f"The blob is seen at [{corners}]. So it is {side}.\nAnswer: {side}"


def liar(prompt: str, picture: Image.Image) -> str:
    """Never looks, and says that it does."""
    return "A bright blob is clearly visible at [0.1, 0.1, 0.4, 0.4]. So it is left.\nAnswer: left"

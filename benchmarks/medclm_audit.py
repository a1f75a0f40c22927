"""What does `medclm audit` itself cost beside the model's time?

A server on loopback, in a process of its own, that takes half a second for each reply (a 7B model that reasons takes longer);
pictures of 1024 x 1024 pixels; one request at a time. Own cost: processor seconds of the audit from the first question to the
page, and wall seconds beyond the server's.

`python benchmarks/medclm_audit.py [QUESTIONS]` asks each question three times; 16 by default.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from harness import record
from PIL import Image

from trimtab.medclm.audit import AuditOptions, ServedModel, audit
from trimtab.medclm.audit.run import FILE
from trimtab.medclm.evaluation.evaluate import write
from trimtab.medclm.evaluation.questions import Question
from trimtab.medclm.texts.server import ChatServer
from trimtab.report.medclm.audit import render_audit

DELAY, SIDE = 0.5, 1024


class Slow(BaseHTTPRequestHandler):
    """Replies after `DELAY` seconds."""

    def do_POST(self) -> None:
        """One chat completion."""
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(DELAY)
        text = "It is seen at [0.1, 0.1, 0.5, 0.5]. So yes.\nAnswer: yes"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        data = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        payload = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def serve(port: Any) -> None:
    """A server until it is terminated; its port is put into `port`."""
    server = HTTPServer(("127.0.0.1", 0), Slow)
    port.put(server.server_port)
    server.serve_forever()


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    context = multiprocessing.get_context("spawn")
    ports: Any = context.Queue()
    server = context.Process(target=serve, args=(ports,), daemon=True)
    server.start()
    subject = ServedModel("m", ChatServer(f"http://127.0.0.1:{ports.get()}/v1", "key"), concurrency=1)
    generator, questions = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for place in range(number + 1):  # the first is the warm-up
            image = folder / f"{place}.png"
            noise = generator.integers(0, 255, (SIDE // 4, SIDE // 4), dtype=np.uint8)
            Image.fromarray(noise).resize((SIDE, SIDE)).save(image)
            text = f"Is there a nodule in picture {place}?"
            questions.append(Question(str(place), image, text, "yes", str(place), choices=("yes", "no"), reason=True))
        options = AuditOptions(boxes=None)
        audit(subject, questions[:2], folder / "warm", options)
        cpu, wall = time.process_time(), time.perf_counter()
        found = audit(subject, questions[1:], folder / "replies", options)
        about = {"model": "m", "server": None, "data": "d", "questions": "q", "split": "test", "form": "explained",
                 "ask": "set", "boxes": "none", "claimed": None}  # fmt: skip
        write(found, folder, about, FILE)
        render_audit(folder)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        replies = len(list((folder / "replies").glob("*/*.json")))
    server.terminate()
    model = replies * DELAY
    size = f"{replies} replies of {DELAY} s on pictures of {SIDE} x {SIDE}, page made"
    record("medclm_audit", [
        {"question": f"audit's own processor time / the model's time, {size}", "ratio": cpu / model, "bar": "<= 0.05",
         "met": cpu / model <= 0.05},
        {"question": f"audit's wall time beyond the model's / the model's time, {size}", "ratio": wall / model - 1,
         "bar": "reported as it is", "met": True},
    ])  # fmt: skip


if __name__ == "__main__":
    main()

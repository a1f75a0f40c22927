"""ChatGenerator against a server on loopback that fails in every way a real one does."""

from __future__ import annotations

import json
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.medclm.samples import LABELS, source, two_classes
from trimtab.medclm.building import build
from trimtab.medclm.texts import GenerationError, asks
from trimtab.medclm.texts.chat import ChatGenerator


class Server:
    """Words drafts with "Well," in front; `script` gives what to do with the first requests instead."""

    def __init__(self):
        self.script, self.bodies, self.delay = [], [], 0.0
        self.now = self.most = 0
        guard = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with guard:
                    outer.bodies.append(body)
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                    action = outer.script.pop(0) if outer.script else "ok"
                time.sleep(outer.delay)
                try:
                    self._answer(body, action)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with guard:
                        outer.now -= 1

            def _answer(self, body, action):
                if isinstance(action, int):
                    said = f"status {action} for {self.headers['Authorization']}"
                    self._send(
                        action,
                        {"error": {"message": said}},
                        {"Retry-After": "0.01"},
                    )
                    return
                if action == "slow":
                    time.sleep(1.5)
                facts = json.loads(body["messages"][1]["content"][0]["text"])
                draft = facts["draft"]
                worded = {
                    "question": "Well, " + draft["question"],
                    "reasoning": draft["reasoning"],
                    "answer": "certainly something else" if action == "lie" else facts["answer"],
                }
                message = {"role": "assistant", "content": json.dumps(worded), "refusal": None}
                if action == "malformed":
                    message["content"] = '{"question": "Wh'
                if action == "refusal":
                    message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
                reply = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
                self._send(200, {**reply, "choices": [choice], "usage": usage})

            def _send(self, status, data, headers=None):
                payload = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server():
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture
def ask_one(server, tmp_path):
    (tmp_path / "i.png").write_bytes(b"the picture's bytes")
    image = two_classes()

    def call(seed=0, **options):
        generator = ChatGenerator(
            "tiny", tmp_path, tmp_path / "replies", server.url, "key", longest_pause=0.02, **{"timeout": 5.0, **options}
        )
        ask = asks(image, image.lesions[0], "easy", LABELS)[0]
        return generator, lambda: generator.generate(image, image.lesions[0], "easy", seed, ask)

    return call


def test_the_request_carries_image_schema_and_facts_and_the_row_its_text(server, ask_one):
    generator, ask = ask_one(price_in=2.0, price_out=30.0)
    row = ask()
    assert row.question.startswith("Well, ")
    assert row.generator == "chat:tiny"
    body = server.bodies[0]
    assert body["response_format"]["json_schema"]["strict"] is True
    assert body["messages"][1]["content"][1]["image_url"]["url"] == "data:image/png;base64,dGhlIHBpY3R1cmUncyBieXRlcw=="
    assert "[0.1000, 0.2000, 0.2000, 0.3000]" in body["messages"][1]["content"][0]["text"]
    used = generator.usage()
    assert (used["requests"], used["prompt_tokens"], used["completion_tokens"]) == (1, 100, 10)
    assert used["cost"] == pytest.approx((100 * 2.0 + 10 * 30.0) / 1e6)


def test_the_same_prompt_is_paid_once_also_by_another_process(server, ask_one):
    first = ask_one()[1]()
    assert ask_one()[1]() == first
    assert len(server.bodies) == 1
    ask_one(seed=1)[1]()
    assert len(server.bodies) == 2


def test_two_threads_that_ask_the_same_pay_once(server, ask_one):
    server.delay = 0.2
    _, ask = ask_one()
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.bodies) == 1


@pytest.mark.parametrize("script", [[429, 429], [500], [503, 429, 500]])
def test_busy_and_broken_servers_are_asked_again(server, ask_one, script):
    server.script = list(script)
    generator, ask = ask_one()
    assert ask().answer == "nodule"
    assert len(server.bodies) == len(script) + 1
    assert generator.usage()["repeated tries"] == len(script)


def test_a_server_that_stays_broken_gives_a_rejected_row(server, ask_one):
    server.script = [500] * 3
    with pytest.raises(GenerationError, match="the server answered 500"):
        ask_one(retries=3)[1]()


def test_a_slow_reply_times_out_and_is_asked_again(server, ask_one):
    server.script = ["slow"]
    assert ask_one(timeout=0.5)[1]().answer == "nodule"
    assert len(server.bodies) == 2


def test_malformed_json_is_asked_again_and_not_again_after_a_restart(server, ask_one):
    server.script = ["malformed", "malformed"]
    ask_one()[1]()
    assert len(server.bodies) == 3
    ask_one()[1]()
    assert len(server.bodies) == 3
    server.script = ["malformed"] * 3
    with pytest.raises(GenerationError, match="no valid JSON in all attempts"):
        ask_one(seed=1)[1]()


def test_a_refusal_is_a_rejected_row_and_is_not_asked_again(server, ask_one):
    server.script = ["refusal"]
    for _ in range(2):
        with pytest.raises(GenerationError, match="the model refused: I cannot help"):
            ask_one()[1]()
    assert len(server.bodies) == 1


def test_a_wrong_key_stops_at_once(server, ask_one):
    server.script = [401]
    with pytest.raises(ValueError, match="refuses every request: 401"):
        ask_one()[1]()
    assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [401, 400, 500])
def test_what_a_server_says_never_carries_the_key(server, tmp_path, status):
    (tmp_path / "i.png").write_bytes(b"the picture's bytes")
    image, key = two_classes(), "sk-very-secret-0123456789"
    server.script = [status] * 9
    generator = ChatGenerator("tiny", tmp_path, tmp_path / "replies", server.url, key, retries=2, longest_pause=0.02)
    with pytest.raises((ValueError, GenerationError), match=r"Bearer \(the key\)") as caught:
        generator.generate(image, image.lesions[0], "easy", 0, asks(image, image.lesions[0], "easy", LABELS)[0])
    assert key not in "".join(traceback.format_exception(caught.value))


def test_a_build_is_killed_and_goes_on_without_paying_twice(server, tmp_path):
    options = source(tmp_path / "source", images=6)

    def generator():
        return ChatGenerator(
            "tiny", tmp_path / "out" / "images", tmp_path / "replies", server.url, "key", longest_pause=0.02
        )

    class Kill(BaseException):
        pass

    def progress(step, done):
        if step == "rows" and done == 5:
            raise Kill

    server.script = ["ok", 429, "ok", "malformed", "ok", "refusal", "ok", "lie"]
    server.delay = 0.02
    with pytest.raises(Kill):
        build(options, tmp_path / "out", generator(), concurrency=3, progress=progress)
    result = build(options, tmp_path / "out", generator(), concurrency=3)
    prompts = [json.dumps(body, sort_keys=True) for body in server.bodies]
    paid = len(prompts) - 1  # the 429
    assert result.statistics["generator"]["requests"] == paid
    repeated = len(prompts) - len(set(prompts))
    assert repeated == 2  # after the 429 and after the malformed reply
    assert 1 < server.most <= 3
    reasons = result.statistics["rejected by reason"]
    assert reasons["the model refused"] == 1
    assert sum(number for reason, number in reasons.items() if reason != "the model refused") >= 1  # the lie
    assert result.statistics["rows"] > 5

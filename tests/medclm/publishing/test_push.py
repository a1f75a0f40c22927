"""What goes to the Hub, told to a server of our own by huggingface_hub's own client: nothing leaves the machine."""

import base64
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.medclm.samples import source
from trimtab.cli import main
from trimtab.medclm.building import build
from trimtab.medclm.publishing import About, publish, push, release_in

ABOUT = About(name="chest-boxes", licence="cc-by-4.0")
hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    return build(source(root / "source"), root / "out").folder


@pytest.fixture
def release(folder, tmp_path):
    publish(folder, tmp_path / "release", ABOUT, published="2026-01-31", shards=2)
    return tmp_path / "release"


class Server(ThreadingHTTPServer):
    """As much of the Hub as a push needs; `status` other than 200 is what the first request gets."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.made, self.files, self.tokens, self.status = [], {}, set(), 200

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *given):
        pass

    def do_GET(self):
        self._say({"error": "no such data set"}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.status != 200:
            self._say({"error": "You have no right to write here"}, self.server.status)
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self._say({"url": f"{self.server.address}/datasets/me/chest-boxes"})
        elif self.path == "/api/validate-yaml":
            self._say({"errors": [], "warnings": []})
        elif self.path == "/api/datasets/me/chest-boxes/preupload/main":
            names = [one["path"] for one in json.loads(body)["files"]]
            self._say({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif self.path == "/api/datasets/me/chest-boxes/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._say({"commitUrl": f"{self.server.address}/datasets/me/chest-boxes/commit/1", "commitOid": "1"})
        else:
            self._say({"error": f"not expected: {self.path}"}, 404)

    def _say(self, found, status=200):
        text = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def server(monkeypatch):
    found = Server()
    monkeypatch.setattr(hub.constants, "ENDPOINT", found.address)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


def written(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_card_licence_croissant_and_data_go_along_and_nothing_else(release, server, capsys):
    expected = written(release)
    (release / "notes.txt").write_text("not for others")
    (release / "images").mkdir()
    (release / "images" / "a.png").write_bytes(b"not published")
    assert main(["medclm", "push", str(release), "--to", "hf://datasets/me/chest-boxes"]) == 0
    assert server.files == expected
    assert {"README.md", "croissant.json", "data/train.parquet"} <= server.files.keys()
    assert any(name.endswith(".tar") for name in server.files)
    assert [(one["name"], one["organization"], one["type"]) for one in server.made] == [
        ("chest-boxes", "me", "dataset")
    ]
    assert server.made[0].get("private", server.made[0].get("visibility") == "private") is True
    assert server.tokens == {"Bearer hf_of_a_test"}
    said = " ".join(capsys.readouterr().out.split())
    assert "licence cc-by-4.0" in said
    assert "not sent, since publish did not write them: images/a.png, notes.txt" in said
    assert "/datasets/me/chest-boxes/commit/1" in said
    assert "load_dataset('me/chest-boxes')" in said


def test_a_release_of_annotations_goes_without_pictures(folder, tmp_path, server):
    publish(folder, tmp_path / "release", ABOUT, published="2026-01-31", annotations_only=True)
    push(release_in(tmp_path / "release"), "hf://datasets/me/chest-boxes")
    assert server.files == written(tmp_path / "release")
    assert "pictures.jsonl" in server.files
    assert not any(name.endswith((".png", ".jpg")) for name in server.files)


def test_a_dry_run_lists_the_files_and_needs_no_token(release, server, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    before = written(release)
    assert main(["medclm", "push", str(release), "--to", "hf://datasets/me/x", "--public", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == {name: len(content) for name, content in before.items()}
    assert (found["sent"], found["public"], found["licence"]) == (None, True, "cc-by-4.0")
    assert main(["medclm", "push", str(release), "--to", "hf://datasets/me/x", "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"would send \d+ files, [\d,]+ bytes, licence cc-by-4\.0 to hf://datasets/me/x \(private if", said)
    assert "nothing was sent" in said
    assert (server.made, server.tokens, written(release)) == ([], set(), before)


def one_line(capsys, *words):
    assert main(["medclm", "push", *map(str, words)]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


def test_without_a_token_it_says_so_before_anything_is_sent(release, server, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    said = one_line(capsys, release, "--to", "hf://datasets/me/chest-boxes")
    assert "`hf auth login`, or set HF_TOKEN" in said
    assert (server.made, server.tokens) == ([], set())


def test_a_hub_that_refuses_or_is_not_there_is_named(release, server, monkeypatch, capsys):
    server.status = 403
    said = one_line(capsys, release, "--to", "hf://datasets/me/chest-boxes")
    assert f"the Hub at {server.address} refuses me/chest-boxes" in said
    assert "You have no right to write here" in said
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound but not listening: nobody answers
        monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        assert "does not answer" in one_line(capsys, release, "--to", "hf://datasets/me/chest-boxes")


def test_what_is_no_release_is_refused(folder, release, server, tmp_path, capsys):
    to = ("--to", "hf://datasets/me/chest-boxes")
    assert "write hf://datasets/USER/NAME" in one_line(capsys, release, "--to", "hf://me/chest-boxes")
    assert "has no croissant.json: only what `trimtab medclm publish` wrote" in one_line(capsys, folder.path, *to)
    assert "has no README.md" in one_line(capsys, tmp_path / "nowhere", *to)
    card = (release / "README.md").read_text()
    (release / "README.md").write_text(card.replace("license: cc-by-4.0\n", ""))
    assert "README.md names no licence" in one_line(capsys, release, *to)
    (release / "README.md").write_text(card)
    with (release / "data" / "train.parquet").open("ab") as file:
        file.write(b"0")
    assert "train.parquet is not the file that croissant.json lists" in one_line(capsys, release, *to)
    (release / "data" / "train.parquet").unlink()
    assert "has no data/train.parquet, which croissant.json lists" in one_line(capsys, release, *to)
    assert server.made == []

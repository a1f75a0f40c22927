"""The live page: what it reads of runs that train, what its server answers and refuses, the page in a browser."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import CHROMIUM, DRIVER, WITHOUT, look_as, problems, script, show, started, wait
from trimtab.cli import main
from trimtab.report.live.server import LiveServer
from trimtab.report.live.state import LiveRuns
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.plan import Plan, PlannedRun

EVIL = "<img src=x onerror=alert(1)>"


def begin(path: Path, epochs: int = 3, seed: int = 0, method: str = "sgd", **info: Any) -> RunFolder:
    """A run that has done so many of five epochs."""
    folder = RunFolder(path)
    folder.open(Recipe(epochs=5, seed=seed, method=method))
    advance(folder, epochs)
    folder.write_info(**{"status": "running", **info})
    return folder


def advance(folder: RunFolder, epochs: int) -> None:
    rows = [
        {"epoch": at, "train_loss": 2 / at, "validation_accuracy": 0.1 * at, "lr": 0.1} for at in range(1, epochs + 1)
    ]
    folder.write_metrics(rows)


@contextmanager
def served(root: Path, **settings: Any) -> Iterator[LiveServer]:
    with LiveServer(root, port=0, **settings) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: LiveServer, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    link = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    link.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        link.putheader(name, value)
    link.endheaders()
    answer = link.getresponse()
    body = answer.read()
    link.close()
    return answer.status, body, dict(answer.getheaders())


def test_a_study_is_read_anew_with_what_has_not_begun_failed_or_is_damaged(tmp_path: Path) -> None:
    first = begin(tmp_path / "runs/sgd/seed0")
    begin(tmp_path / "runs/var/seed0", 5, method="var", status="finished")
    failed = begin(tmp_path / "runs/sam/seed0", 1, method="sam")
    (failed.path / "error.txt").write_text("Traceback\nValueError: too much\n")
    (tmp_path / "runs/bad").mkdir()
    (tmp_path / "runs/bad/recipe.yaml").write_text("method: [")
    begin(first.path / "finetuned" / "0123", 1)  # belongs to its run
    names = {"mine": "sgd/seed0", "later": "later/seed7"}
    plan = [PlannedRun(label=label, seed=int(name[-1]), folder=f"runs/{name}") for label, name in names.items()]
    Plan(runs=plan).write(tmp_path / "study.json")
    live = LiveRuns(tmp_path)
    found = {run["key"]: run for run in live.state()["runs"]}
    told = {key: (run["label"], run["seed"], run["status"], run["epoch"]) for key, run in found.items()}
    assert told == {
        "runs/sgd/seed0": ("mine", 0, "running", 3), "runs/later/seed7": ("later", 7, "not started", 0),
        "runs/bad": ("bad", None, "damaged", 0), "runs/sam/seed0": ("sam", 0, "failed", 1),
        "runs/var/seed0": ("var", 0, "finished", 5),
    }  # fmt: skip
    assert "too much" in found["runs/sam/seed0"]["note"]
    assert "recipe.yaml" in found["runs/bad"]["note"]
    assert found["runs/sgd/seed0"]["measures"]["train_loss"] == {"x": [1, 2, 3], "y": [2, 1, 0.666667]}
    advance(first, 4)
    again = live.state()
    assert next(run for run in again["runs"] if run["label"] == "mine")["measures"]["train_loss"]["y"][-1] == 0.5
    assert [one["name"] for one in again["measures"]] == ["train_loss", "validation_accuracy", "lr"]
    assert again["working"]


def test_what_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path / "run")
    live = LiveRuns(tmp_path)
    before = live.state()
    monkeypatch.setattr(RunFolder, "metrics", lambda _: pytest.fail("read again"))
    assert live.state()["runs"][0]["measures"] == before["runs"][0]["measures"]


def test_not_finite_is_a_gap_and_the_document_stays_json(tmp_path: Path) -> None:
    folder = begin(tmp_path)
    folder.metrics_file.write_text('{"epoch": 1, "train_loss": NaN}\n{"epoch": 2, "train_loss": 1.0}\n')
    run = LiveRuns(tmp_path).state()["runs"][0]
    assert run["key"] == "."
    assert run["measures"]["train_loss"]["y"] == [None, 1.0]
    json.dumps(run, allow_nan=False)


def test_the_server_has_four_addresses_and_no_paths(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    begin(tmp_path / "study" / "run")
    before = sorted(tmp_path.rglob("*"))
    with served(tmp_path / "study") as server:
        assert server.server_address[0] == "127.0.0.1"
        for path in ("/", "/live.js", "/plotly.js", "/state.json", "/state.json?t=1"):
            status, body, headers = ask(server, path)
            assert (status, bool(body)) == (200, True), path
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert "unsafe-inline" not in headers["Content-Security-Policy"].split("style-src")[0]
        for path in (
            "/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "//secret.txt", "/run/recipe.yaml", "/secret.txt",
            "/.%00./secret.txt", "/" + os.fspath(tmp_path / "secret.txt"), "/etc/passwd", "/static/../../secret.txt", "*",
        ):  # fmt: skip
            status, body, _ = ask(server, path)
            assert status == 404, path
            assert b"secret\n" not in body
        packed = ask(server, "/state.json", **{"Accept-Encoding": "gzip"})
        whole = ask(server, "/plotly.js")[1]
        assert gzip.decompress(ask(server, "/plotly.js", **{"Accept-Encoding": "gzip"})[1]) == whole
        assert packed[0] == 200
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_only_get_is_answered(tmp_path: Path, method: str) -> None:
    with served(tmp_path) as server:
        assert ask(server, "/state.json", method)[0] == 405


def test_a_name_that_is_not_loopback_is_refused(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        port = server.server_address[1]
        for host in (f"evil.example:{port}", "", "127.0.0.1.evil.example", "[", "10.0.0.1"):
            assert ask(server, "/state.json", Host=host)[0] == 421, host
        for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
            assert ask(server, "/state.json", Host=host)[0] == 200, host


def test_markup_in_names_is_escaped(tmp_path: Path) -> None:
    root = tmp_path / "<b>study"
    begin(root / "run")
    with served(root) as server:
        page = ask(server, "/")[1].decode()
    assert "<b>study" not in page
    assert "&lt;b&gt;study" in page


def test_the_command_refuses_what_it_cannot_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path / "none")]) == 2
    assert "no folder at" in capsys.readouterr().err
    assert main(["watch", str(tmp_path), "--port", "70000"]) == 2
    assert "from 0 to 65535, got 70000" in capsys.readouterr().err
    assert main(["watch", str(tmp_path), "--every", "0"]) == 2
    assert "from 0.2 to 3600" in capsys.readouterr().err
    with served(tmp_path) as server:
        assert main(["watch", str(tmp_path), "--port", str(server.server_address[1])]) == 2
    assert "--port 0" in capsys.readouterr().err
    begin(tmp_path / "run")
    assert main(["watch", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["epoch"] == 3


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=WITHOUT)
def test_the_page_follows_the_run_and_its_runs_are_toggled(tmp_path: Path) -> None:
    pytest.importorskip("selenium", reason="selenium is not installed")
    root = tmp_path / "study"
    first = begin(root / "runs/a", 2)
    begin(root / "runs/b", 3, seed=1)
    Plan(runs=[PlannedRun(label=EVIL, seed=0, folder="runs/a")]).write(root / "study.json")
    (tmp_path / "browser").mkdir()
    with served(root, every=0.2) as server, started(tmp_path / "browser") as driver:
        look_as(driver, width=390, dark=True)
        show(driver, server.address)
        traces = "return document.querySelector('#figure-train_loss .chart').data.map(t => [t.name, t.y.length])"
        assert script(driver, "return document.documentElement.scrollWidth") <= 390
        lengths = [length for _, length in script(driver, traces)]
        assert lengths == [2, 3]
        assert script(driver, "return document.querySelectorAll('img').length") == 0
        assert EVIL in script(driver, "return document.getElementById('rows').textContent")
        advance(first, 4)
        wait(lambda: script(driver, traces)[0][1] == 4, "the run's next epochs")
        script(driver, "document.querySelectorAll('.chip')[1].click()")
        wait(lambda: len(script(driver, traces)) == 1, "one run fewer")
        assert script(driver, "return document.querySelectorAll('.chip')[1].getAttribute('aria-pressed')") == "false"
        script(driver, "document.getElementById('all').click()")
        wait(lambda: len(script(driver, traces)) == 2, "both runs again")
        begin(root / "runs/c", 1, seed=2)
        wait(lambda: len(script(driver, traces)) == 3, "a new run")
        assert problems(driver) == []

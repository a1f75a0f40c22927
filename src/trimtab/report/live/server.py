"""A small server of one page: four addresses, read only, for this machine."""

from __future__ import annotations

import gzip
import ipaddress
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trimtab.report.bundle import script_bytes
from trimtab.report.live.state import LiveRuns
from trimtab.report.page import environment
from trimtab.report.palette import THEMES

POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: its own scripts and numbers, nothing else."""
Answer = tuple[str, bytes]


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and no other.

    Example:
        >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
        (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _answers(runs: LiveRuns, every: float) -> Mapping[str, Callable[[], Answer]]:
    """Every address there is, and what it holds; no address is ever taken for a path."""

    def text(name: str) -> bytes:
        made = environment().get_template(name).render(root=str(runs.root), themes=THEMES, every=every)
        return made.encode()

    return {
        "/": lambda: ("text/html; charset=utf-8", text("live.html.j2")),
        "/live.js": lambda: ("text/javascript; charset=utf-8", text("live.js.j2")),
        "/plotly.js": lambda: ("text/javascript; charset=utf-8", script_bytes()),
        "/state.json": lambda: ("application/json", json.dumps(runs.state(), allow_nan=False).encode()),
    }


class _Handler(BaseHTTPRequestHandler):
    """Answers GET for the known addresses, refuses all else."""

    server: LiveServer
    server_version, sys_version = "trimtab", ""
    timeout = 30

    def do_GET(self) -> None:
        if not self.server.knows(self.headers.get("Host", "")):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "Unknown host")
            return
        answer = self.server.answers.get(self.path.partition("?")[0])
        if answer is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        kind, body = answer()
        packed = len(body) > 2000 and "gzip" in self.headers.get("Accept-Encoding", "")
        body = gzip.compress(body, 5, mtime=0) if packed else body
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse  # noqa: N815

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line every two seconds helps nobody."""


class LiveServer(ThreadingHTTPServer):
    """The page of the runs at or below a folder.

    It reads the folder at each question and writes nothing. Only four addresses exist, whatever lies in the folder. Bound
    to loopback it answers only questions that name loopback, so that a page elsewhere cannot read it by a name of its own.

    Args:
        root: folder of a run or of a study.
        host: address to listen at.
        port: 0 for any that is free.
        every: seconds between the page's looks.

    Raises:
        ValueError: the folder is not there, or the port cannot be had.

    Example:
        >>> import tempfile
        >>> with LiveServer(Path(tempfile.mkdtemp()), port=0) as server:
        ...     server.address.startswith("http://127.0.0.1:")
        True
    """

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, root: Path, host: str = "127.0.0.1", port: int = 8731, every: float = 2.0) -> None:
        if not Path(root).is_dir():
            raise ValueError(f"no folder at {root}; watch takes the folder of a run or of a study")
        self.answers = _answers(LiveRuns(Path(root)), every)
        self.host = host
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"cannot listen at {host}, port {port} ({error}); --port 0 takes any that is free"
            ) from error

    @property
    def address(self) -> str:
        """Where the page is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def knows(self, named: str) -> bool:
        """Whether a question that names this host is for this server."""
        if not is_loopback(self.host):
            return True
        try:
            return is_loopback(urlsplit(f"//{named}").hostname or "")
        except ValueError:
            return False

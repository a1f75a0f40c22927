"""`trimtab watch`: a page of runs while they train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, errors, print_json
from trimtab.report.live.server import LiveServer, is_loopback
from trimtab.report.live.state import LiveRuns


@dataclass(frozen=True)
class WatchArguments:
    """Serves a page of runs on this machine and draws it anew while they train; it only reads, and Ctrl-C ends it.

    Examples:
        trimtab watch runs
        trimtab watch runs/digits --port 0
        trimtab watch demo --json
    """

    folder: tyro.conf.Positional[Path]
    """Folder of a run or of a study."""
    port: int = 8731
    """Port of the page; 0 takes any that is free."""
    host: str = "127.0.0.1"
    """Address to listen at. Others can read the page only when this is an address that they reach."""
    every: float = 2.0
    """Seconds between two looks at the folder."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def run(arguments: Sequence[str]) -> int:
    """Parse and serve until stopped; with --json print the state once."""
    given = parse(WatchArguments, arguments, "watch")
    if not 0 <= given.port <= 65535:
        raise ValueError(f"--port must be from 0 to 65535, got {given.port}")
    if not 0.2 <= given.every <= 3600:
        raise ValueError(f"--every must be from 0.2 to 3600 seconds, got {given.every}")
    if given.output.json:
        if not given.folder.is_dir():
            raise ValueError(f"no folder at {given.folder}; watch takes the folder of a run or of a study")
        print_json(LiveRuns(given.folder).state())
        return 0
    with LiveServer(given.folder, given.host, given.port, given.every) as server:
        if not is_loopback(given.host):
            errors.print(f"anyone who reaches {given.host} can read this page", style="yellow", markup=False)
        console.print(f"{server.address}   Ctrl-C ends it", markup=False, highlight=False, soft_wrap=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print()
    return 0

"""Joining a Ray cluster: an address that does not answer is one error at once."""

from __future__ import annotations

import importlib
import logging
import os
import socket
from typing import Any

PATIENCE = 10.0
"""Seconds within which a cluster's address must answer [ours]."""


def wanted_address(launcher: str, address: str | None) -> str | None:
    """The address given, failing that the environment's RAY_ADDRESS; checked, and whether something listens there.

    Raises:
        ValueError: an address without Ray, what is no address, or nothing answers.
    """
    if launcher != "ray":
        if address is not None:
            raise ValueError(f"address {address!r} is of a Ray cluster; give launcher ray with it")
        return None
    address = address or os.environ.get("RAY_ADDRESS") or None
    _check_answers(address)
    return address


def join(address: str | None) -> tuple[Any, bool]:
    """The module `ray`, connected to the cluster, and whether that was begun here; one that is connected stays as it is.

    Args:
        address: `HOST:PORT` of the cluster's head, "auto" for the one that this machine belongs to; None or "local" for a
            cluster of this machine alone.

    Raises:
        ImportError: Ray is not installed.
        ValueError: nothing answers at the address.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ImportError("--launcher ray needs Ray: pip install 'trimtab[ray]'") from error
    if ray.is_initialized():
        return ray, False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address in (None, "local"):
        quiet["include_dashboard"] = False
    try:
        ray.init(address=address, **quiet)
    except Exception as error:  # a node that does not start in time is a bare one
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"no Ray cluster answers at {address or 'this machine'}: {reason}") from None
    return ray, True


def _check_answers(address: str | None) -> None:
    """That something listens there; Ray itself would try for minutes.

    Raises:
        ValueError: no address, or nothing answers.
    """
    if address in (None, "auto", "local"):
        return
    assert address is not None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"the address of a Ray cluster is HOST:PORT, auto or local, got {address!r}")
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except OSError as error:
        raise ValueError(
            f"no Ray cluster answers at {address} ({error.strerror or error}); start one with `ray start --head` there"
        ) from None

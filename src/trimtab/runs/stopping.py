"""Ctrl-C and SIGTERM while a run trains: looked at between steps, so that a checkpoint can be written."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Turns the signals into a flag that is looked at between steps; Ctrl-C again, a second later, stops at once.

    Attributes:
        asked: whether one has come.
    """

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """A signal has come."""
        # The terminal's Ctrl-C and a parent's SIGTERM may both arrive: only a person's second Ctrl-C means "at once".
        if self.asked and number == signal.SIGINT and time.monotonic() - self._since > 1:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._since = True, time.monotonic()


@contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
    """Inside, both signals only set the flag; off the main thread, where Python hands out no signals, nothing does."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Importing a library without an optional one that it would bring along."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(name: str) -> Iterator[None]:
    """Inside, `import name` raises ImportError, unless it is imported already.

    Example:
        >>> with without("this"):
        ...     import this
        Traceback (most recent call last):
        ModuleNotFoundError: import of this halted; None in sys.modules
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]

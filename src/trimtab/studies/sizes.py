"""Bytes in words."""

from __future__ import annotations

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def bytes_text(size: float) -> str:
    """A file size in kB or MB (powers of ten).

    Example:
        >>> bytes_text(31_200), bytes_text(300)
        ('31.2 kB', '300 B')
    """
    for unit, scale in UNITS:
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"

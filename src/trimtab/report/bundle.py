"""The script that draws the figures: plotly.js with the traces that the pages draw, packed into the page."""

from __future__ import annotations

import base64
import gzip
import lzma
from functools import cache
from importlib import resources

FILE = "plotly-trimtab.min.js.xz"
"""plotly.js 4.1.1 with scatter, bar, heatmap and contour, made by `.ci/plotly_bundle.sh` (MIT; its licence beside it)."""


@cache
def script_bytes() -> bytes:
    """The bundle as it is."""
    return lzma.decompress((resources.files("trimtab.report") / "plotly" / FILE).read_bytes())


@cache
def packed_script() -> str:
    """The bundle, gzipped and in base64: a third of what it is as text; the page unpacks it with DecompressionStream.

    Example:
        >>> script = gzip.decompress(base64.b64decode(packed_script()))
        >>> b"contour - minified) v4.1.1" in script, len(packed_script()) < 520_000
        (True, True)
    """
    return base64.b64encode(gzip.compress(script_bytes(), 9, mtime=0)).decode("ascii")

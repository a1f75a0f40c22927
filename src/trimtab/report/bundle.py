"""The script that draws the figures: plotly.js's cartesian bundle, packed into the page."""

from __future__ import annotations

import base64
import gzip
import lzma
from functools import cache
from importlib import resources

FILE = "plotly-cartesian.min.js.xz"
"""plotly.js-cartesian-dist-min 4.1.1 from npm, unchanged but packed (MIT; its licence stands beside it)."""


@cache
def script_bytes() -> bytes:
    """The bundle as it is."""
    return lzma.decompress((resources.files("trimtab.report") / "plotly" / FILE).read_bytes())


@cache
def packed_script() -> str:
    """The bundle, gzipped and in base64: a third of what it is as text; the page unpacks it with DecompressionStream.

    Example:
        >>> script = gzip.decompress(base64.b64decode(packed_script()))
        >>> b"plotly.js (cartesian - minified) v4" in script, len(packed_script()) < 700_000
        (True, True)
    """
    return base64.b64encode(gzip.compress(script_bytes(), 9, mtime=0)).decode("ascii")

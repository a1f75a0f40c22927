"""What the API's pages do to docstrings before they are parsed."""

from __future__ import annotations

import re
from typing import Any

import griffe

HEAD = re.compile(r"^( *)Example:$", re.MULTILINE)


class OneExample(griffe.Extension):
    """`Example:` is read as the section of examples, not as a remark."""

    def on_object(self, *, obj: griffe.Object, **rest: Any) -> None:
        """Rename the section's head."""
        if obj.docstring is not None:
            obj.docstring.value = HEAD.sub(r"\1Examples:", obj.docstring.value)

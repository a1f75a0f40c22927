"""What every record of a study is: fixed fields, none unknown; and those that are files of their own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from trimtab.files import write_text
from trimtab.inputs import named, utf8


def finite(value: Any) -> float | None:
    """A number as JSON can hold it: None where it is not finite, or no number.

    Example:
        >>> finite(2), finite(math.nan), finite(None)
        (2.0, None, None)
    """
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


class Record(BaseModel):
    """A part of a document; a field that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Document(Record, populate_by_name=True):
    """A JSON file; `schema` names its form."""

    schema_: str = Field(alias="schema")

    def write(self, path: Path) -> None:
        """Write to a temporary name beside `path`, then rename."""
        write_text(path, self.model_dump_json(by_alias=True, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that `write` left; ValueError names the file and the field that does not fit."""
        with named(path, f"is no {cls.__name__.lower()}"):
            return cls.model_validate_json(utf8(path))

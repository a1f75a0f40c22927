"""What the publisher of a set says about it: name, licence, who made it."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from trimtab.checks import hint

LICENCES = (
    "apache-2.0", "mit", "openrail", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "odc-by", "odbl",
    "pddl", "gpl-3.0", "lgpl-3.0", "bsd-2-clause", "bsd-3-clause", "c-uda", "etalab-2.0", "unknown", "other",
)  # fmt: skip
"""Short names as the Hugging Face Hub has them, those that data sets bear."""
_URLS = {
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0", "mit": "https://opensource.org/license/mit",
    "cc0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "odc-by": "https://opendatacommons.org/licenses/by/1-0/", "odbl": "https://opendatacommons.org/licenses/odbl/1-0/",
    "pddl": "https://opendatacommons.org/licenses/pddl/1-0/",
}  # fmt: skip


class About(BaseModel):
    """What a published set is called and under which terms.

    Raises:
        ValueError: an unknown licence, "other" without a link, a name with other signs than letters, digits, ".", "-", "_".

    >>> About(name="chest-boxes", licence="cc-by-4.0").shown_name, About(name="x", licence="cc-by-4.0").licence_url
    ('chest boxes', 'https://creativecommons.org/licenses/by/4.0/')
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Short name, such as chest-boxes: of the metadata and of the shards."""
    licence: str
    """Short name of the licence of pictures and texts, such as cc-by-4.0; the source's decides. "other" needs a link."""
    licence_link: str = ""
    """Where the licence stands, for "other"."""
    pretty_name: str = ""
    """Title of the card; default: the name with spaces."""
    description: str = ""
    """One or two sentences on where the pictures come from."""
    url: str = ""
    """Home page."""
    citation: str = ""
    """How to cite the set or its source."""
    creators: tuple[str, ...] = ()
    """Who made it."""

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", value):
            raise ValueError(f"name {value!r} must be letters, digits, '.', '-' or '_', as in chest-boxes")
        return value

    @model_validator(mode="after")
    def _terms(self) -> About:
        if self.licence not in LICENCES:
            raise ValueError(f"no licence {self.licence!r}; {hint(self.licence, LICENCES, 'licences')}")
        if self.licence == "other" and not self.licence_link:
            raise ValueError("licence 'other' needs licence_link: where it can be read")
        return self

    @property
    def shown_name(self) -> str:
        """Title of the card."""
        return self.pretty_name or re.sub(r"[-_]+", " ", self.name)

    @property
    def licence_url(self) -> str:
        """Where the licence can be read; its short name where no place is known."""
        if self.licence_link or self.licence in _URLS:
            return self.licence_link or _URLS[self.licence]
        if found := re.fullmatch(r"cc-(by(?:-n[cd])*(?:-(?:nd|sa))?)-(\d\.\d)", self.licence):
            return f"https://creativecommons.org/licenses/{found[1]}/{found[2]}/"
        return self.licence

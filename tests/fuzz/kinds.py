"""Which files are damaged, and how each is read."""

from __future__ import annotations

from tests.fuzz import data_files, medclm_files, run_files
from tests.fuzz.running import Kind

KINDS: dict[str, Kind] = {kind.name: kind for module in (data_files, run_files, medclm_files) for kind in module.KINDS}

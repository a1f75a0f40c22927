"""Which files are damaged, and how each is read."""

from __future__ import annotations

from tests.fuzz import data_files, medclm_files, run_files, study_files
from tests.fuzz.running import Kind

MODULES = (data_files, run_files, study_files, medclm_files)
KINDS: dict[str, Kind] = {kind.name: kind for module in MODULES for kind in module.KINDS}

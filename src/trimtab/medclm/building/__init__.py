"""Building a data set: prepare images, write rows, finish; check, describe and export what was built."""

from trimtab.medclm.building.build import BuildResult, build
from trimtab.medclm.building.folder import DataSetFolder
from trimtab.medclm.building.options import BuildOptions

__all__ = ["BuildOptions", "BuildResult", "DataSetFolder", "build"]

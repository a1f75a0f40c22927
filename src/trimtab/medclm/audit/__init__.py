"""Does a vision-language model look at the picture? The audit of any model, served or in a folder, on any question set."""

from trimtab.medclm.audit.options import AuditOptions
from trimtab.medclm.audit.run import audit
from trimtab.medclm.audit.subjects import FolderModel, ServedModel, Subject

__all__ = ["AuditOptions", "FolderModel", "ServedModel", "Subject", "audit"]

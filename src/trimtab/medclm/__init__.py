"""MedCLM data: from detection boxes to questions, reasoning and answers tied to anatomy (arXiv 2510.04477)."""

from trimtab.medclm.records import Box, HostDecision, ImageRecord, Lesion, Rejected, Row

__all__ = ["Box", "HostDecision", "ImageRecord", "Lesion", "Rejected", "Row"]

"""Passes over tensors: exact moments, selection, blocks and units; the one kernel room."""

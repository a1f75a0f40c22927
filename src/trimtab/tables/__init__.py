"""Tidy rows that grow on disk."""

"""Fixtures for the extraction tests."""

from support.extraction import extract, folder, model, weights

__all__ = ["extract", "folder", "model", "weights"]

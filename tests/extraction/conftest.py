"""The fixtures of the tests of extraction."""

from support.extraction import extract, folder, model, weights

__all__ = ["extract", "folder", "model", "weights"]

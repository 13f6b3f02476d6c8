"""The version of featuretap, which files record."""

__all__ = ["__version__"]

__version__ = "0.1.0"

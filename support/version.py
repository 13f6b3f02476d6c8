"""The version of featuretap, which files record."""

__version__ = "0.1.0"

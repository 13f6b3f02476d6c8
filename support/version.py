"""The version of featuretap, as recorded in files."""

__version__ = "0.1.0"

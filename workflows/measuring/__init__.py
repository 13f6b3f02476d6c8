"""Measuring how fast backbones are: in eager mode, in runtimes, and beside other libraries."""

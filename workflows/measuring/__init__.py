"""Benchmark backbones in eager mode, in runtimes, and against other libraries."""

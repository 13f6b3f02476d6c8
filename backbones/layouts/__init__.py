"""Layouts of the built-in backbones: their tensor names in other libraries, one module per library."""

"""Layouts of models with heads: their tensor names in other libraries. Only listing a head's tensors imports torch."""

"""Weights that travel: files read and written, checked, renamed between layouts, and fitted to models.

`header`, `metadata`, `replacing`, `timm_config`, `expectation` and `recognition` need no torch; the rest holds tensors.
"""

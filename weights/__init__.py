"""Weights that travel: files read and written, checked, renamed between layouts, and fitted to models.

`docs/architecture.md` says what each module does, and which need no torch.
"""

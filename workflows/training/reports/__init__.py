"""Reports of a run: tables and pictures."""

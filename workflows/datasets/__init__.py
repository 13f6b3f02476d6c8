"""Data sets to learn from and to judge by: folders, files of annotations and named sets. No torch."""

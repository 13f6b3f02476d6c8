"""Data sets for training and evaluation: folders, annotation files and named data sets."""

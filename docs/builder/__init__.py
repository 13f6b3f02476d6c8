"""Generators of the documentation: the zoo, the tap drawings and the command line reference."""

"""What the documentation is generated from: the zoo, the drawings of the taps, the command line's own help."""

"""Training and judging models: from a data set and a configuration to weights, a history and pictures."""

"""Training and evaluating models: from a data set and settings to weights, a history and pictures."""

"""The modules that heads become, one file a head, and the models that backbones with heads are."""

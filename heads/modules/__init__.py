"""PyTorch modules of the heads, one file per head, and the models that combine a backbone with heads."""

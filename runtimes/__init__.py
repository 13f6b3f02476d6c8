"""Running, exporting and quantising models without PyTorch's eager mode."""

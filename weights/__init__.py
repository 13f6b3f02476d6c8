"""Files to tensors in the native layout and back: read, check, identify, translate, fold, prune, write, download."""

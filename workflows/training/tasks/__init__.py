"""The tasks: classification, detection and segmentation, with their transforms, losses and metrics."""

"""Feature maps of many images, written to sharded files."""

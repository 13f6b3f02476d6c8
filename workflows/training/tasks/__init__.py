"""What differs between tasks: preparing images, losses and measures."""

"""Code that does not depend on networks: errors, import strings, images, atomic writing and progress."""

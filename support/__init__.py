"""Code that has nothing to do with networks: errors, import strings, images, atomic writing, progress bars."""

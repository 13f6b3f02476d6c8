"""featuretap's own plugins, registered through the same entry points as anybody's."""

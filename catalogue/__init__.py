"""Names to specs: catalogue files, entry points, policy, plugins, published weights and build requests."""

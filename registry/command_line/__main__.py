"""`python -m featuretap.registry.command_line`."""

from featuretap.registry.command_line import main

main()

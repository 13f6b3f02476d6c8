"""Entry point of `python -m featuretap.command_line`."""

from featuretap.command_line import main

main()

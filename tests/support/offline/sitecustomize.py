"""Refuse connections to other machines. Python imports this module at startup if its folder is on PYTHONPATH."""

import socket
from typing import Any

connect = socket.socket.connect


def connect_here(self: socket.socket, address: Any) -> None:
    if isinstance(address, tuple) and address[0] not in ("localhost", "127.0.0.1", "::1"):
        raise PermissionError(f"no test may connect to {address[0]}")
    connect(self, address)


socket.socket.connect = connect_here  # type: ignore[method-assign]

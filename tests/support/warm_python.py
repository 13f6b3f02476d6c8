"""Python processes that start without importing PyTorch, torchvision and timm: forks of an interpreter that has.

Importing the three libraries takes several seconds, which most commands on the pages would otherwise spend again.
`WarmPython` starts an interpreter of an environment as a server, which imports them but nothing from featuretap.
`command` returns a command line that replaces `python -c CODE …` or `python -m MODULE …`. Its small client sends its
arguments, environment variables, working directory and standard streams to the server, waits for the fork that runs
them, and exits with the same status.

The fork has its own `__main__`, `sys.argv` and `sys.path`, finds packages installed since the server started, and ends
like any interpreter. Two things differ: variables that Python reads at startup, such as PYTHONPATH, are the server's,
and standard output is never buffered.

This file contains both the server and the client. tests/pages/test_warm_python.py compares forks with ordinary
processes.
"""

import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import site
import socket
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WarmPython:
    """The server of an environment, as a test uses it.

    Args:
        python: the interpreter of the environment.
        variables: environment variables of the server.
    """

    def __init__(self, python: Path, variables: Mapping[str, str]) -> None:
        self._python = python
        # A socket path has at most 107 characters on Linux, and a test's temporary folder can be longer.
        self._folder = tempfile.TemporaryDirectory(prefix="warm-python-")
        self._address = str(Path(self._folder.name) / "socket")
        command = [python, __file__, "serve", self._address]
        self._server = subprocess.Popen(
            command, env=dict(variables), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._server.stdout
        assert self._server.stdout.readline() == "ready\n", "the server of forked interpreters did not start"

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs `python ARGUMENTS` in a fork."""
        return [str(self._python), "-IS", __file__, "ask", self._address, *arguments]

    def close(self) -> None:
        self._server.communicate()
        self._folder.cleanup()


def ask(address: str, arguments: list[str]) -> int:
    """Run `python ARGUMENTS` in a fork and return its exit status. A negative status is a signal."""
    request = {"arguments": arguments, "variables": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"\0"], [0, 1, 2])
        connection.sendall(json.dumps(request).encode())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile() as answer:
            return int(answer.read())


def serve(address: str) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request until standard input ends. In the fork, return the request and its standard streams."""
    del sys.path[0]  # This folder: its modules must not be importable in the environment.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("torch", "torchvision", "timm"):
            importlib.import_module(name)
    # Garbage collection in a fork would visit all imported objects, and copy their memory.
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
            connection, _ = listening.accept()
            with connection:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
                    with connection.makefile() as sent:
                        request = json.load(sent)
                    process = os.fork()
                    if process == 0:
                        return request, streams
                    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                    connection.sendall(str(status).encode())
                    os._exit(0)
    os._exit(0)


def become(request: dict[str, Any], streams: list[int]) -> None:
    """Turn a fork into the requested process, and run it."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    encoding = sys.stdout.encoding
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding, write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding, "backslashreplace", write_through=True)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    importlib.invalidate_caches()
    for folder in site.getsitepackages():
        site.addsitedir(folder)
    # Python reseeds the standard library's random numbers in every fork, but not these.
    sys.modules["numpy"].random.seed()
    sys.modules["torch"].seed()
    kind, what, *rest = request["arguments"]
    sys.argv = [kind, *rest]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if kind == "-c":
        sys.path.insert(0, "")
        exec(compile(what, "<string>", "exec"), vars(main))
    else:
        assert kind == "-m", f"python {kind}: only -c and -m are forked"
        sys.path.insert(0, os.getcwd())
        runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        status = ask(sys.argv[2], sys.argv[3:])
        if status < 0:
            os.kill(os.getpid(), -status)
        sys.exit(status)
    become(*serve(sys.argv[2]))

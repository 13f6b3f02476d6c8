"""Python processes that do not have to import PyTorch, torchvision and timm: forks of one interpreter that has.

Importing the three takes several seconds, which most commands on the pages would otherwise spend again. `WarmPython`
starts an interpreter of an environment as a server, which imports them, but nothing of featuretap. `command` returns a
command line that stands for `python -c CODE …` or `python -m MODULE …`: a small client hands its arguments,
environment variables, working directory and standard streams to the server, waits for the fork that runs them, and
exits with the same status. The fork has a `__main__`, `sys.argv` and `sys.path` of its own, finds what was installed
since the server started, and ends as every interpreter does. Two things differ: the variables that Python reads at
its start, such as PYTHONPATH, are those of the server, and standard output is never buffered.

This file is the server and the client as well. tests/pages/test_warm_python.py compares forks with other processes.
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
    """The server of an environment, seen from a test.

    Args:
        python: the interpreter of the environment.
        variables: environment variables of the server.
    """

    def __init__(self, python: Path, variables: Mapping[str, str]) -> None:
        self._python = python
        # The path of a socket has at most 107 characters on Linux, and a test's own folder may have more.
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
    """Have a fork run `python ARGUMENTS`, and return its exit status; a negative one is a signal."""
    request = {"arguments": arguments, "variables": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"\0"], [0, 1, 2])
        connection.sendall(json.dumps(request).encode())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile() as answer:
            return int(answer.read())


def serve(address: str) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request until standard input ends; return the request and its standard streams in the fork."""
    del sys.path[0]  # This folder: its modules are no part of an environment.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("torch", "torchvision", "timm"):
            importlib.import_module(name)
    # Garbage collections of the forks would visit all that was imported, and so copy it.
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
    """Turn a fork into the process that was asked for, and run it."""
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
    # Random numbers of the standard library are seeded by every fork, these are not.
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

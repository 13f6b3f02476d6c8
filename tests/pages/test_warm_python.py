"""A fork of the interpreter that has imported PyTorch behaves like an ordinary Python process."""

import subprocess
import textwrap
from pathlib import Path

import pytest
from support import TESTS
from support.distributions import table
from support.terminal import Terminal

MODULE = """
import sys

print(__name__, __spec__.name, sys.argv[1:], sys.path[0], flush=True)
print(input("name? "), file=sys.stderr)
raise KeyError("nobody")
"""


@pytest.mark.parametrize(
    "code",
    [
        "pass",
        "import sys; sys.exit()",
        "import sys; sys.exit(3)",
        'import sys; sys.exit("a reason")',
        "import os; os._exit(7)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        'print("out", end=""); import sys; print("error", file=sys.stderr); print("out again")',
        "import sys; print(sys.argv, repr(sys.path[0]), __name__)",
        "import os; print(os.getcwd())",
        'import os; print(os.environ["GIVEN"], os.environ.get("HOME"), os.getppid() != os.getpid())',
        "import sys; print(sys.prefix, sys.executable, sys.flags.optimize, sys.warnoptions)",
        'import atexit; atexit.register(print, "at the end")',
        'import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()',
        'import subprocess; print(subprocess.run(["sh", "-c", "exit 5"]).returncode)',
        "import pickle\nclass Thing: pass\nprint(type(pickle.loads(pickle.dumps(Thing()))))",
        "import sys; print(sys.stdin.read(), sys.stdout.isatty(), sys.stdout.encoding, sys.stderr.errors)",
        "import sys; print(sys.path)",
    ],
)
def test_a_fork_prints_and_returns_what_a_process_does(terminal: Terminal, tmp_path: Path, code: str) -> None:
    outcomes = []
    for python in (terminal.environment.python, "python"):
        script = f"exec 2>&1; echo text | {python} -c '{code}' one 'and two'; echo ${{PIPESTATUS[1]}}"
        outcomes.append(terminal.run(f"set +e; {script}", tmp_path, GIVEN="a value").stdout)
    assert outcomes[0] == outcomes[1]


def test_a_module_runs_as_the_main_module(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "named.py").write_text(MODULE)
    expected = f"__main__ named ['-x', 'y z'] {tmp_path}\nname? "
    ended = terminal.run("echo somebody | python -m named -x 'y z'", tmp_path)
    assert (ended.returncode, ended.stdout) == (1, expected)
    assert ended.stderr.startswith("somebody\nTraceback")
    assert ended.stderr.endswith("KeyError: 'nobody'\n")


def test_a_file_and_other_options_of_python_are_left_to_python(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "named.py").write_text("import sys; print(sys.argv, 'torch' in sys.modules)")
    assert terminal.run("python named.py a; python -O named.py b", tmp_path).stdout == (
        "['named.py', 'a'] False\n['named.py', 'b'] False\n"
    )


def test_pytorch_is_imported_before_and_featuretap_is_not(terminal: Terminal, tmp_path: Path) -> None:
    code = "import sys; print({'torch', 'torchvision', 'timm'} - sys.modules.keys(), 'featuretap' in sys.modules)"
    assert terminal.run(f'python -c "{code}"', tmp_path).stdout == "set() False\n"


def test_nothing_that_a_fork_does_is_seen_by_the_next(terminal: Terminal, tmp_path: Path) -> None:
    change = "import os, featuretap, torch; os.environ['A'] = 'b'; os.chdir('/'); torch.set_num_threads(2); torch.a = 1"
    look = (
        "import os, sys, torch; print('A' in os.environ, os.getcwd(), 'featuretap' in sys.modules, hasattr(torch, 'a'))"
    )
    assert (
        terminal.run(f'python -c "{change}"; python -c "{look}"', tmp_path).stdout == f"False {tmp_path} False False\n"
    )


def test_forks_run_at_the_same_time(terminal: Terminal, tmp_path: Path) -> None:
    """Each fork waits for a line from the other."""
    script = """
        mkfifo one two
        python -c "open('one', 'w').write('from the first'); print(open('two').read())" &
        python -c "print(open('one').read()); open('two', 'w').write('from the second')"
        wait
    """
    assert terminal.run(textwrap.dedent(script), tmp_path).stdout.splitlines() == ["from the first", "from the second"]


def test_a_pipe_that_nobody_reads_ends_a_fork(terminal: Terminal, tmp_path: Path) -> None:
    ended = terminal.run("python -c \"while True: print('a line')\" | head -n 1", tmp_path)
    assert ended.stdout == "a line\n"
    assert "BrokenPipeError" in ended.stderr


def test_every_fork_draws_its_own_random_numbers(terminal: Terminal, tmp_path: Path) -> None:
    code = "import random, numpy, torch; print(random.random(), numpy.random.rand(), float(torch.rand(())))"
    drawn = terminal.run(f'python -c "{code}"; python -c "{code}"', tmp_path).stdout.split()
    assert len(set(drawn)) == 6


def test_what_is_installed_after_the_start_is_found(terminal: Terminal, tmp_path: Path) -> None:
    """Both a module in a folder named by a .pth file, as in an editable install, and its entry point are found."""
    site = terminal.environment.site
    (tmp_path / "plugin_late.py").write_text(table("latenet"))
    metadata = site / "featuretap_late-1.0.dist-info"
    assert "latenet" not in terminal.run("featuretap list", tmp_path / "..").stdout
    try:
        (site / "late.pth").write_text(f"{tmp_path}\n")
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: featuretap-late\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[featuretap]\nlate = plugin_late\n")
        assert "latenet" in terminal.run("featuretap list", tmp_path / "..").stdout
    finally:
        (site / "late.pth").unlink()
        for path in metadata.iterdir():
            path.unlink()
        metadata.rmdir()


def test_a_fork_may_not_connect_to_other_machines(terminal: Terminal, tmp_path: Path) -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 80))"
    ended = terminal.run(f'python -c "{code}"', tmp_path)
    assert "PermissionError: no test may connect to 192.0.2.1" in ended.stderr


def test_the_server_ends_with_the_process_that_started_it(terminal: Terminal) -> None:
    """The server has inherited standard error, a pipe that this test reads to its end."""
    code = """
        import os, sys
        from pathlib import Path
        from support.warm_python import WarmPython

        server = WarmPython(Path(sys.executable), os.environ)
        print("started", flush=True)
        os._exit(9)
    """
    command = [terminal.environment.python, "-c", textwrap.dedent(code)]
    ended = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (9, "started\n")

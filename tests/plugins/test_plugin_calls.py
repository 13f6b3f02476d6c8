"""Calls into a plugin's code, at import or in a hook: exceptions, results, time and output."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import Completed
from support.distributions import GOOD, Distribution, installed_here, plugin_of, table, write_installed

from featuretap.catalogue import plugin_calls
from featuretap.registry import Registry
from featuretap.registry.errors import PluginError
from featuretap.registry.hookspecs import WeightsEntry, hookimpl
from featuretap.registry.specs import RE, BackboneSpec, Conv, HeadSpec

Run = Callable[..., Completed]

TYPED = {
    "typed": "os.kill(os.getpid(), signal.SIGINT)\n",
    "hidden": "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    raise ImportError from None\n",
    "ignored": "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    pass\n" + table("net"),
    "ended": "os.kill(os.getpid(), signal.SIGTERM)\n",
}
"""Name → code of a plugin that is interrupted while it is imported."""

LOUD = """
import os, subprocess, sys

print("printed")
sys.__stdout__.write("kept and written\\n")
os.write(1, b"written\\n")
subprocess.run([sys.executable, "-c", "print('by a child')"], check=True)
"""


# --- Exceptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise MemoryError", "MemoryError"),
        ("def deeper():\n    deeper()\n\n\ndeeper()", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_whatever_importing_a_plugin_raises_is_its_failure(tmp_path: Path, code: str, reason: str) -> None:
    with installed_here(write_installed(tmp_path, {"odd": Distribution(code), "tiny": GOOD["tiny"]})):
        registry = Registry()
        assert registry.problems == (f"plugin 'odd' of distribution 'featuretap-odd' failed: {reason}",)
        assert "tinynet" in registry.list_backbones()


@pytest.mark.parametrize("name", TYPED)
def test_an_interruption_while_a_plugin_is_imported_names_it(run: Run, tmp_path: Path, name: str) -> None:
    code = f"import os, signal\n{TYPED[name]}"
    with installed_here(write_installed(tmp_path, {name: Distribution(code)})):
        ran = run("list")
    assert ran == Completed(
        143 if name == "ended" else 130,
        "",
        f"featuretap: interrupted while loading plugin {name!r} of distribution 'featuretap-{name}'\n",
    )


def test_an_interruption_is_raised_where_a_program_asked_and_the_next_call_loads_again(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    code = f"import os, signal\n{TYPED['typed']}{table('latenet')}"
    with installed_here(write_installed(tmp_path, {"typed": Distribution(code)})):
        registry = Registry()
        with pytest.raises(KeyboardInterrupt) as interrupt:
            registry.list_backbones()
        assert interrupt.value.__notes__ == ["while loading plugin 'typed' of distribution 'featuretap-typed'"]
        assert signal.getsignal(signal.SIGINT) is handler
        (tmp_path / "plugin_typed.py").write_text(f"# The same, not interrupted.\n{table('latenet')}")
        assert "latenet" in registry.list_backbones()


def test_a_handler_that_does_not_raise_interrupts_nothing() -> None:
    signals: list[int] = []
    spec = BackboneSpec("net", stages=((Conv(3, 8, RE),),))

    def backbones() -> list[BackboneSpec]:
        os.kill(os.getpid(), signal.SIGINT)
        return [spec]

    previous = signal.signal(signal.SIGINT, lambda number, frame: signals.append(number))
    try:
        registry = Registry([SimpleNamespace(__name__="x", featuretap_backbones=hookimpl(backbones))], discover=False)
        assert "net" in registry.list_backbones()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert signals == [signal.SIGINT]


def test_an_interruption_that_nobody_typed_is_a_failure_to_answer() -> None:
    def find(name: str) -> Any:
        raise KeyboardInterrupt

    registry = Registry([SimpleNamespace(__name__="open", featuretap_find_backbone=hookimpl(find))], discover=False)
    with pytest.raises(PluginError) as error:
        registry.spec("open/net")
    assert str(error.value) == (
        "plugin 'open' of distribution 'open' failed on the request for 'open/net': KeyboardInterrupt"
    )


def test_an_interruption_in_another_thread_is_a_failure() -> None:
    registry = Registry([SimpleNamespace(__name__="x", featuretap_heads=hookimpl(interrupt))], discover=False)
    thread = threading.Thread(target=registry.list_heads)
    thread.start()
    thread.join()
    assert registry.problems == ("plugin 'x' of distribution 'x' failed: KeyboardInterrupt",)


def interrupt() -> Any:
    raise KeyboardInterrupt


# --- Results ------------------------------------------------------------------------------------------------------


ENDLESS = {
    "backbones": BackboneSpec("net", stages=((Conv(3, 8, RE),),)),
    "heads": HeadSpec("head", reads=("C5",), factory="a:b"),
    "weights": WeightsEntry("net.tag", "https://example.org/net", "0" * 64, "featuretap", 1e-5),
}


@pytest.mark.parametrize("hook", ENDLESS)
def test_an_endless_list_is_a_failure(hook: str) -> None:
    registry = Registry([plugin_of("endless", **{hook: itertools.repeat(ENDLESS[hook])})], discover=False)
    assert registry.problems == (
        f"plugin 'endless' of distribution 'endless' failed: its hook featuretap_{hook} returns more than 10000 "
        "objects; return a shorter list, or implement featuretap_find_backbone (a namespace)",
    )


def match(answer: Callable[[], Any]) -> Registry:
    """Return a registry with a namespace that lists the names of `answer()`."""

    def match_backbones(pattern: str) -> Any:
        return answer()

    module = SimpleNamespace(__name__="open", featuretap_match_backbones=hookimpl(match_backbones))
    return Registry([module], discover=False)


def test_an_open_namespace_may_yield_its_names() -> None:
    assert match(lambda: iter(["open/a", "open/b"])).list_backbones("open/*") == ["open/a", "open/b"]


def test_an_endless_open_namespace_is_a_problem() -> None:
    registry = match(lambda: (f"open/{number}" for number in itertools.count()))
    assert registry.list_backbones("open/*") == []
    assert registry.problems == (
        "plugin 'open' of distribution 'open' failed on the request for 'open/*': ValueError: more than 10000 names",
    )


# --- Time ---------------------------------------------------------------------------------------------------------


def test_a_slow_plugin_is_named_once_while_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plugin_calls, "SLOW", 0.05)
    # The plugin continues once the warning has named it.
    slow = "import slow_plugins, time\nwhile not slow_plugins.named(): time.sleep(0.01)\ntime.sleep(0.2)\n"
    monkeypatch.setitem(sys.modules, "slow_plugins", SimpleNamespace(named=lambda: caplog.messages))
    plugins = {"slow": Distribution(slow + table("slownet")), "tiny": GOOD["tiny"]}
    with installed_here(write_installed(tmp_path, plugins)):
        assert "slownet" in Registry().list_backbones()
    assert [message for message in caplog.messages if "tiny" not in message] == [
        "plugin 'slow' of distribution 'featuretap-slow' has been loading for 0.05 seconds"
    ]
    assert "featuretap-slow-plugins" not in [thread.name for thread in threading.enumerate()]


# --- Output -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closing", ["", "os.close(1)\nos.close(2)\n"], ids=["open", "closed"])
def test_what_a_plugin_prints_never_reaches_the_standard_output_of_a_program(tmp_path: Path, closing: str) -> None:
    code = LOUD + closing + table("loudnet")
    write_installed(tmp_path, {"loud": Distribution(code)})
    program = (
        "import sys\n"
        "print('before')\n"
        "from featuretap import registry\n"
        "print('loudnet' in registry.list_backbones())\n"
        "print('an error', file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout) == (0, "before\nTrue\n")
    printed = {"written", "by a child", "an error"} | ({"printed", "kept and written"} if not closing else set())
    assert printed <= set(ran.stderr.splitlines())


def test_where_standard_streams_are_closed_files_that_have_their_descriptors_are_left_alone(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from types import SimpleNamespace\n"
        "from featuretap.registry import Registry\n"
        "from featuretap.registry.hookspecs import hookimpl\n"
        "files = [open(str(number), 'w') for number in range(3)]\n"
        "assert [file.fileno() for file in files] == [0, 1, 2]\n"
        "heads = hookimpl(lambda: [print(number, file=file, flush=True) for number, file in enumerate(files)][:0])\n"
        "Registry([SimpleNamespace(__name__='x', featuretap_heads=heads)], discover=False).list_heads()\n"
    )
    subprocess.run(["sh", "-c", f'"{sys.executable}" {program} <&- >&- 2>&-'], cwd=tmp_path, check=True)
    assert [(tmp_path / str(number)).read_text() for number in range(3)] == ["0\n", "1\n", "2\n"]


def test_standard_output_is_restored_after_two_threads_have_loaded_plugins() -> None:
    loading, loaded = threading.Event(), threading.Event()

    def first() -> list[Any]:
        other.start()
        assert loading.wait(30)
        return []

    def second() -> list[Any]:
        loading.set()
        # The other thread started earlier and ends earlier.
        assert loaded.wait(30)
        return []

    def load(hook: Callable[[], Any]) -> None:
        module = SimpleNamespace(__name__="x", featuretap_heads=hookimpl(hook))
        assert Registry([module], discover=False, builtins=False).problems == ()

    before = sys.stdout, os.fstat(1).st_ino
    other = threading.Thread(target=load, args=[second])
    load(first)
    loaded.set()
    other.join()
    assert (sys.stdout, os.fstat(1).st_ino) == before

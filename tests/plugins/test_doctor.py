"""`featuretap plugins doctor` on installed distributions: its output and exit status."""

import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import Completed
from support.distributions import CULPRITS, GOOD, IMPORTS, Distribution, installed_here, write_installed
from torch import nn

from featuretap.command_line import main
from featuretap.registry import Registry, diagnosis, examination
from featuretap.registry.diagnosis import find_problems
from featuretap.registry.errors import SpecError
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.specs import BackboneSpec, HeadSpec

FACTORIES = """
@hookimpl
def featuretap_backbones():
    taps = {{"{address}": Tap(32, 8)}}
    return [BackboneSpec(name, taps=taps, factory="plugin_{name}:build") for name in {backbones}]


def build(spec, *, taps):
    from torch import nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            # Without padding what is left over of the image is dropped.
            self.conv = nn.Conv2d(3, 32, 7, 8, 3) if spec.name == "whole" else nn.Conv2d(3, 32, 8, 8)

        def forward(self, images):
            if spec.name == "leaves":
                raise SystemExit(0)
            if spec.name == "breaks":
                raise RuntimeError("a pipe\\nbroke")
            return {{"{address}": self.conv(images)}}

    if spec.name == "lacks":
        raise KeyError("a file")
    return Network()


@hookimpl
def featuretap_heads():
    reads = ("{address}",)
    return [HeadSpec("{name}-head", reads=reads, factory="plugin_{name}:head", outputs="plugin_{name}:outputs")]


def outputs(backbone, *, num_classes, height, width):
    return {{"means": ({means},)}}


def head(backbone, *, num_classes):
    from torch import nn

    class Means(nn.Module):
        def forward(self, taps):
            return taps["{address}"].mean((2, 3))

    return Means()
"""


def factories(name: str, address: str, backbones: list[str], means: int) -> Distribution:
    """Return a plugin with backbones built by factories, and a head that returns the means of a map."""
    return Distribution(IMPORTS + FACTORIES.format(name=name, address=address, backbones=backbones, means=means))


NOTHING = IMPORTS + "\n\n@hookimpl\ndef featuretap_backbones():\n    return []\n"


def runtime(name: str) -> Distribution:
    """Return a plugin with a runtime, which the doctor checks without PyTorch."""
    return Distribution(
        "from featuretap.registry.hookspecs import hookimpl\nfrom featuretap.specs import RuntimeSpec\n\n\n"
        f"@hookimpl\ndef featuretap_runtimes():\n    return [RuntimeSpec({name!r}, 'a:b')]\n"
    )


PATIENTS = {
    "tiny": GOOD["tiny"],
    "own": factories("own", "mine", ["whole"], means=32),
    "raises": Distribution("def deep():\n    return 1 / 0\n\n\ndeep()\n"),
    "future": CULPRITS["future"],
    "torchy": Distribution("import torch\n" + NOTHING),
    "torchy_two": runtime("onnxruntime"),
    "many": factories("many", "C3", ["floors", "leaves", "breaks", "lacks"], means=8),
}

DESTROYERS = {
    "exits-at-once": Distribution("import os\n\nos._exit(3)\n"),
    "recurses": Distribution(
        "import sys\n\nsys.setrecursionlimit(10**9)\nnested = ()\nfor _ in range(10**6):\n    nested = (nested,)\n"
        "hash(nested)\n"
    ),
    "loses-the-path": Distribution("import sys\n\nsys.path = []\n" + NOTHING.replace("\n\n\n", "\n")),
    "moves": Distribution("import os\n\nos.chdir('/')\n" + NOTHING),
    "closes": Distribution("import os\n\nos.closerange(1, 256)\n" + NOTHING),
    "ignores": Distribution("import signal\n\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + NOTHING),
    "renames": Distribution("import os\n\ndel os.environ['HOME']\nos.environ['NEW'] = '1'\n" + NOTHING),
    "interrupts": Distribution("raise KeyboardInterrupt\n"),
}
"""Plugins that take down, or change, the process that imports them."""


Doctor = Callable[[str], Completed]


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed distributions, some of which have problems."""
    return write_installed(tmp_path_factory.mktemp("patients"), PATIENTS)


@pytest.fixture(scope="module")
def examined(patients: Path) -> dict[str, list[str]]:
    """Distribution → the doctor's output about it when it checks all of them."""
    return examine(patients)


@pytest.fixture(scope="module")
def destroyed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The same for plugins that change or end their process."""
    return examine(write_installed(tmp_path_factory.mktemp("destroyers"), DESTROYERS))


def examine(folder: Path) -> dict[str, list[str]]:
    printed = StringIO()
    with pytest.MonkeyPatch.context() as patch, installed_here(folder):
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setenv("FEATURETAP_STRICT", "1")
        with redirect_stdout(printed), pytest.raises(SystemExit) as ended:
            main(["plugins", "doctor"])
    assert ended.value.code == 1
    reports: dict[str, list[str]] = {}
    for line in read(printed.getvalue()):
        if line.startswith("plugin "):
            reports[line.split("'")[3]] = lines = [line]
        else:
            lines.append(line)
    return reports


@pytest.fixture
def doctor(patients: Path, run: Callable[..., Completed]) -> Iterator[Doctor]:
    """Run `featuretap plugins doctor` with the distributions of `patients` installed."""
    with installed_here(patients):
        yield lambda name: run("plugins", "doctor", name)


def read(printed: str) -> list[str]:
    """Return the printed lines without times and folders."""
    timed = re.sub(r" in \d+\.\d ms$", " in T ms", printed, flags=re.MULTILINE)
    return re.sub(r'File ".*/(\w+\.py)"', r'File "\1"', timed).splitlines()


def problems_of(report: list[str]) -> list[str]:
    return [line.removeprefix("  problem      ") for line in report if line.startswith("  problem")]


def test_a_plugin_without_problems(examined: dict[str, list[str]]) -> None:
    assert examined["featuretap-tiny"] == [
        "plugin 'tiny' of distribution 'featuretap-tiny'",
        "  version      1.2",
        "  entry point  plugin_tiny",
        "  status       loaded in T ms",
        "  provides     1 backbone",
        "  found        no problems",
    ]


def test_the_status_is_0_where_there_are_no_problems(
    run: Callable[..., Completed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with installed_here(write_installed(tmp_path, {"nothing": Distribution(NOTHING)})):
        ran = run("plugins", "doctor")
    assert (ran.status, ran.err, read(ran.out)[-1]) == (0, "", "  found        no problems")


def test_without_a_name_all_plugins_but_built_in_ones_are_examined(examined: dict[str, list[str]]) -> None:
    assert sorted(examined) == sorted(f"featuretap-{name.replace('_', '-')}" for name in PATIENTS)


def test_without_plugins_there_is_nothing_to_examine(run: Callable[..., Completed]) -> None:
    assert run("plugins", "doctor") == Completed(
        0,
        "no plugins are installed; check the built-in plugins with: featuretap plugins doctor featuretap\n",
        "",
    )


@pytest.mark.parametrize("name", ["featuretap-torchy-two", "Featuretap_Torchy.Two", "torchy-two", "torchy_two"])
def test_a_plugin_is_named_by_its_distribution_or_by_its_entry_point(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("FEATURETAP_PLUGINS", "")
    ran = doctor(name)
    assert read(ran.out)[0] == "plugin 'torchy_two' of distribution 'featuretap-torchy-two'"


def test_a_failed_plugin_is_shown_with_the_traceback_of_its_own_code(examined: dict[str, list[str]]) -> None:
    assert [line for line in examined["featuretap-raises"] if "~" not in line and "^" not in line] == [
        "plugin 'raises' of distribution 'featuretap-raises'",
        "  version      1.2",
        "  entry point  plugin_raises",
        "  status       failed in T ms",
        "  problem      ZeroDivisionError: division by zero",
        "    Traceback (most recent call last):",
        '      File "plugin_raises.py", line 5, in <module>',
        "        deep()",
        '      File "plugin_raises.py", line 2, in deep',
        "        return 1 / 0",
        "    ZeroDivisionError: division by zero",
        '  next         fix the plugin, or disable it: [plugins] disable = ["featuretap-raises"] in featuretap.toml',
    ]


def test_a_plugin_for_another_version_of_featuretap_has_no_traceback(examined: dict[str, list[str]]) -> None:
    report = examined["featuretap-future"]
    assert "    Traceback (most recent call last):" not in report
    assert "  problem      it requires featuretap>=99, but featuretap" in "\n".join(report)


@pytest.mark.parametrize(
    ("name", "problems"),
    [
        (
            "torchy",
            [
                "'plugin_torchy' imports torch on import or in a hook, which slows down every start; refer to heavy "
                "code by an import string, 'package.module:function'"
            ],
        ),
        (
            "torchy-two",
            [
                "'featuretap-torchy-two' provides the runtime 'onnxruntime', which is built in and cannot be "
                "replaced; use 'featuretap-torchy-two:onnxruntime' for the plugin's"
            ],
        ),
        (
            "many",
            [
                "'featuretap-many:floors' breaks its spec: for a 97x161 image C3 should be (32, 13, 21), got "
                "(32, 12, 20)",
                "'featuretap-many:leaves' fails on a 97x161 image (SystemExit: 0)",
                "'featuretap-many:breaks' fails on a 97x161 image (RuntimeError: a pipe broke)",
                "backbone 'lacks': 'plugin_many:build' raised KeyError: 'a file'",
                "head 'featuretap-many:many-head' on 'mobilenet_v3_small' breaks its spec: for a 97x161 image means "
                "should be (8,), got (24,)",
            ],
        ),
    ],
)
def test_every_problem_is_one_line_even_where_a_model_raises_system_exit(
    examined: dict[str, list[str]], name: str, problems: list[str]
) -> None:
    report = examined[f"featuretap-{name}"]
    assert problems_of(report) == problems
    assert report[-2:] == [
        f"  found        {'1 problem' if len(problems) == 1 else f'{len(problems)} problems'}",
        "  next         make the module match its declaration; the classes of featuretap.registry.testing check more",
    ]


def test_a_head_is_tried_on_a_backbone_that_has_the_taps_it_reads(examined: dict[str, list[str]]) -> None:
    assert examined["featuretap-own"][-2:] == [
        "  provides     1 backbone, 1 head",
        "  found        no problems",
    ]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("exits-at-once", "importing the plugin and calling its hooks terminates Python with status 3"),
        ("recurses", "importing the plugin and calling its hooks terminates Python with SIGSEGV"),
        ("moves", "importing the plugin changes the working directory to '/'"),
        ("closes", "importing the plugin closes or replaces standard output, standard error"),
        ("ignores", "importing the plugin replaces the handlers of SIGINT"),
        ("renames", "importing the plugin changes the environment variables HOME"),
        ("interrupts", "KeyboardInterrupt"),
    ],
)
def test_what_a_plugin_does_to_its_process_is_its_problem_alone(
    destroyed: dict[str, list[str]], name: str, problem: str
) -> None:
    assert problems_of(destroyed[f"featuretap-{name}"]) == [problem]


def test_a_plugin_that_empties_the_path_is_named(destroyed: dict[str, list[str]]) -> None:
    (problem,) = problems_of(destroyed["featuretap-loses-the-path"])
    assert re.fullmatch(r"importing the plugin removes '.*', '.*', '.*' and \d+ more from sys\.path", problem)


def test_where_a_crash_happened_is_shown(destroyed: dict[str, list[str]]) -> None:
    report = destroyed["featuretap-recurses"]
    assert report[3] == "  status       failed"
    assert report[5] == '    File "plugin_recurses.py", line 7 in <module>'
    assert report[6].startswith("  next         fix the plugin, or disable it: ")


def test_names_that_cannot_be_compared_are_mentioned(destroyed: dict[str, list[str]]) -> None:
    line = "  names        not compared with other plugins: loading all plugins terminates Python with status 3"
    assert line in destroyed["featuretap-moves"]


def test_a_plugin_that_hangs_is_stopped_and_shown_where_it_hangs(
    run: Callable[..., Completed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "PATIENCE", 4)
    hangs = Distribution("import subprocess\n\nsubprocess.run(['sleep', '600'])\n")
    with installed_here(write_installed(tmp_path, {"hangs": hangs})):
        ran = run("plugins", "doctor", "hangs")
    assert ran.status == 1
    assert problems_of(read(ran.out)) == ["importing the plugin and calling its hooks takes more than 4 seconds"]
    assert '    File "plugin_hangs.py", line 3 in <module>' in read(ran.out)


def test_a_plugin_whose_name_another_has_is_told_so(run: Callable[..., Completed], tmp_path: Path) -> None:
    twins = {"one": runtime("twin"), "two": runtime("twin")}
    with installed_here(write_installed(tmp_path, twins)):
        ran = run("plugins", "doctor", "one")
    assert problems_of(read(ran.out)) == [
        "2 plugins provide a runtime named 'twin'; choose one: 'featuretap-one:twin' or 'featuretap-two:twin'"
    ]


def test_a_disabled_plugin_is_not_examined(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURETAP_PLUGINS", "featuretap-tiny")
    ran = doctor("featuretap-raises")
    assert (ran.status, read(ran.out)) == (
        0,
        [
            "plugin 'raises' of distribution 'featuretap-raises'",
            "  version      1.2",
            "  entry point  plugin_raises",
            "  status       disabled by FEATURETAP_PLUGINS or by [plugins] in featuretap.toml",
        ],
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("featuretap-tinny", "; did you mean 'featuretap-tiny'?"),
        (
            "x",
            "; available: featuretap, featuretap-future, featuretap-many, featuretap-own, featuretap-raises, "
            "featuretap-tiny, featuretap-torchy, featuretap-torchy-two, future, many, own, raises, timm, tiny, "
            "torchvision, torchy, torchy_two",
        ),
    ],
)
def test_an_unknown_name_gets_the_nearest_or_all_names(doctor: Doctor, name: str, hint: str) -> None:
    ran = doctor(name)
    assert (ran.status, ran.out) == (2, "")
    assert (
        ran.err == f"featuretap: no plugin or plugin distribution named {name!r} is installed; install it first{hint}\n"
    )


def test_json_is_not_an_option_of_the_doctor(run: Callable[..., Completed]) -> None:
    ran = run("plugins", "--json", "doctor", "featuretap")
    message = "--json applies to the list of plugins; leave out --json or the subcommand"
    assert ran == Completed(2, "", f"featuretap: {message}\n")


def nothing(backbone: BackboneSpec, *, num_classes: int | None) -> nn.Module:
    return nn.Identity()


def leave(backbone: BackboneSpec, **asked: Any) -> Any:
    raise SystemExit(0)


def test_an_exception_that_no_check_expects_is_a_finding() -> None:
    head = HeadSpec("leaves", ("C5",), f"{__name__}:nothing", outputs=f"{__name__}:leave")
    module = SimpleNamespace(__name__="leaving", featuretap_heads=hookimpl(lambda: [head]))
    registry = Registry([module], discover=False)
    assert "SystemExit: 0" in list(find_problems(registry.plugins[-1], registry, str))


def test_a_head_that_no_backbone_fits_is_a_finding() -> None:
    head = HeadSpec("reads", ("C9",), f"{__name__}:nothing")
    module = SimpleNamespace(__name__="reading", featuretap_heads=hookimpl(lambda: [head]))
    registry = Registry([module], discover=False)
    message = "head 'reads' reads C9, but 'mobilenet_v3_small' ends at C5"
    assert message in list(find_problems(registry.plugins[-1], registry, str))


def test_an_interruption_that_nobody_typed_is_a_finding() -> None:
    head = HeadSpec("interrupted", ("C5",), f"{__name__}:nothing", outputs=f"{__name__}:interrupt")
    module = SimpleNamespace(__name__="interrupting", featuretap_heads=hookimpl(lambda: [head]))
    registry = Registry([module], discover=False)
    assert "KeyboardInterrupt" in list(find_problems(registry.plugins[-1], registry, str))


def interrupt(backbone: BackboneSpec, **asked: Any) -> Any:
    raise KeyboardInterrupt


def test_a_plugin_whose_import_does_not_end_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "endless.py").write_text("while True: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(diagnosis, "PATIENCE", 0.1)
    with pytest.raises(SpecError, match=r"^'endless' takes more than 0.1 seconds to import and to answer its hooks$"):
        diagnosis.check_torch_free("endless")

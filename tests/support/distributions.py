"""Distributions with plugins, installed with pip into a virtual environment or placed on the path without pip."""

import importlib
import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

import featuretap
from featuretap import registry
from featuretap.registry.hookspecs import hookimpl

IMPORTS = """
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.specs import RE, BackboneSpec, Conv, HeadSpec, Tap
"""
TABLE = """
@hookimpl
def featuretap_backbones():
    return [BackboneSpec("{name}", stages=((Conv(3, 8, RE),), (Conv(3, 16, RE),)))]
"""


def table(name: str) -> str:
    return IMPORTS + TABLE.format(name=name)


class Distribution(NamedTuple):
    """The code of a plugin's module, and the requirements in its metadata."""

    code: str
    requires: tuple[str, ...] = ()


GOOD = {
    "tiny": Distribution(table("tinynet")),
    # Writes a file when it is imported.
    "marker": Distribution(
        "import os, pathlib\npathlib.Path(os.environ['MARKER']).touch() if 'MARKER' in os.environ else None\n"
        + table("markernet"),
        ("featuretap>=0.0.1", "not-featuretap>=99; extra == 'all'"),
    ),
}

CULPRITS = {
    "raises": Distribution("raise ImportError('the wrong universe')"),
    "exits": Distribution("import sys; sys.exit(3)"),
    "missing": Distribution("import left_pad_of_nobody"),
    "future": Distribution("raise RuntimeError('was imported')", ("featuretap>=99",)),
    "hook-raises": Distribution(IMPORTS + "@hookimpl\ndef featuretap_backbones():\n    raise ValueError('no\\nidea')"),
    "generator": Distribution(
        IMPORTS
        + "@hookimpl\ndef featuretap_heads():\n    yield HeadSpec('h', ('C5',), 'a:b')\n    raise KeyError('late')"
    ),
    "rubbish": Distribution(IMPORTS + "@hookimpl\ndef featuretap_backbones():\n    return ['resnet18']"),
    "text": Distribution(IMPORTS + "@hookimpl\ndef featuretap_heads():\n    return 'fpn'"),
    "none": Distribution(IMPORTS + "@hookimpl\ndef featuretap_backbones():\n    [BackboneSpec]"),
    "misspelled": Distribution(IMPORTS + "@hookimpl\ndef featuretap_backbone():\n    return []"),
    "unmarked": Distribution("def featuretap_backbones():\n    return []"),
    "empty": Distribution("x = 1"),
    "repeats": Distribution(
        IMPORTS + "@hookimpl\ndef featuretap_backbones():\n"
        "    a = BackboneSpec('a', stages=((Conv(3, 8, RE),),))\n"
        "    return [a, BackboneSpec('b', stages=a.stages, aliases=('a',))]"
    ),
    "badname": Distribution(
        IMPORTS + "@hookimpl\ndef featuretap_backbones():\n    return [BackboneSpec(7, stages=((Conv(3, 8, RE),),))]"
    ),
    "badaliases": Distribution(
        IMPORTS + "@hookimpl\ndef featuretap_backbones():\n"
        "    return [BackboneSpec('x', stages=((Conv(3, 8, RE),),), aliases='xx')]"
    ),
    "builtin": Distribution(table("mobilenet_v2")),
    "twin-one": Distribution(table("twinnet")),
    "twin-two": Distribution(table("twinnet")),
    "factory": Distribution(
        IMPORTS + "@hookimpl\ndef featuretap_backbones():\n"
        "    return [BackboneSpec('factorynet', taps={'C5': Tap(8, 32)}, factory='plugin_factory:build')]\n"
        "def build(spec, *, taps):\n    raise ZeroDivisionError('no\\nnetwork')"
    ),
}

WHY = {
    "raises": "ImportError: the wrong universe",
    "exits": "SystemExit: 3",
    "missing": "ModuleNotFoundError: No module named 'left_pad_of_nobody'",
    "future": "it requires featuretap>=99, but featuretap {version} is installed; install compatible versions",
    "hook-raises": "ValueError: no idea",
    "generator": "KeyError: 'late'",
    "rubbish": "its hook featuretap_backbones must return a list of BackboneSpec objects; got 'resnet18'",
    "text": "its hook featuretap_heads must return a list of HeadSpec objects; got 'fpn'",
    "none": "its hook featuretap_backbones returns None; return a list of BackboneSpec objects",
    "misspelled": "it implements 'featuretap_backbone', which is not a hook; did you mean 'featuretap_backbones'?",
    "unmarked": "its function featuretap_backbones is not marked as a hook; decorate it with @hookimpl",
    "empty": "it implements no hooks; available hooks: featuretap_backbones, featuretap_heads, featuretap_weights, "
    "featuretap_runtimes, featuretap_find_backbone, featuretap_match_backbones",
    "repeats": "its backbones use the name 'a' more than once; give each a unique name",
    "badname": "backbone name 7 is invalid; use a string without spaces or colons",
    "badaliases": "backbone 'x' has aliases='xx'; give a tuple of names",
}
"""Why those that fail do."""

FAILURES = {
    f"featuretap-{name}": f"plugin {name!r} of distribution 'featuretap-{name}' failed: "
    + why.format(version=featuretap.__version__)
    for name, why in WHY.items()
}
"""Distribution → the line about its failure."""

CONFLICTS = (
    "'featuretap-builtin' provides the backbone 'mobilenet_v2', which is built in and cannot be replaced; use "
    "'featuretap-builtin:mobilenet_v2' for the plugin's",
    "2 plugins provide a backbone named 'twinnet'; choose one: 'featuretap-twin-one:twinnet' or "
    "'featuretap-twin-two:twinnet'",
)


def plugin_of(name: str, **answers: Any) -> SimpleNamespace:
    """Return a plugin object, without a distribution, whose hooks return the given answers."""
    hooks = {f"featuretap_{hook}": hookimpl(lambda answer=answer: answer) for hook, answer in answers.items()}
    return SimpleNamespace(__name__=name, **hooks)


def module_of(name: str) -> str:
    return f"plugin_{name.replace('-', '_')}"


def write(folder: Path, name: str, distribution: Distribution) -> Path:
    """Write the source tree of a distribution `featuretap-NAME` with a module `plugin_NAME`."""
    module = module_of(name)
    source = folder / name
    source.mkdir(parents=True)
    (source / f"{module}.py").write_text(distribution.code)
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "featuretap-{name}"\nversion = "1.2"\ndependencies = {json.dumps(distribution.requires)}\n'
        f'[project.entry-points.featuretap]\n{name} = "{module}"\n'
        f'[tool.setuptools]\npy-modules = ["{module}"]\n'
    )
    return source


def write_metadata(
    folder: Path, name: str, entry_points: str, *, version: str = "1.0", requires: Iterable[str] = ()
) -> None:
    """Write a `*.dist-info` folder. The distribution counts as installed when `folder` is on `sys.path`."""
    information = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (information / "METADATA").write_text("\n".join(lines) + "\n")
    # Lone surrogates represent bytes that are not UTF-8.
    (information / "entry_points.txt").write_bytes(entry_points.encode("utf-8", "surrogateescape"))


def write_installed(folder: Path, distributions: Mapping[str, Distribution]) -> Path:
    """Write the files that installing the distributions creates: their modules and metadata."""
    for name, distribution in distributions.items():
        module = module_of(name)
        entry_points = f"[featuretap]\n{name} = {module}\n"
        write_metadata(folder, f"featuretap-{name}", entry_points, version="1.2", requires=distribution.requires)
        (folder / f"{module}.py").write_text(distribution.code)
    return folder


@contextmanager
def installed_here(folder: Path) -> Iterator[None]:
    """Make the distributions in a folder importable, and have `featuretap.registry` discover plugins again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(folder), *sys.path])
        patch.setattr(registry.default, "__dict__", {**vars(registry.default), "_state": "unread"})
        importlib.invalidate_caches()
        try:
            yield
        finally:
            places = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
            for name, place in places.items():
                if place and Path(place).is_relative_to(folder):
                    del sys.modules[name]


class Environment:
    """A virtual environment that also sees the packages of the current environment."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python*/site-packages")
        ours = sysconfig.get_paths()["purelib"]
        # A plain path is not enough: a .pth file in that folder makes featuretap importable.
        (self.site / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")

    def install(self, sources: Iterable[Path]) -> None:
        """Build distributions from these folders and install them with pip, without a package index."""
        pip = [sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check", "install"]
        flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*pip, *flags, *sources], check=True, capture_output=True)

    def run(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the environment."""
        return subprocess.run(
            [self.python, *map(str, arguments)],
            # The current folder must not contain the checkout's metadata.
            cwd=self.site,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def featuretap(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the `featuretap` command in the environment."""
        return self.run("-m", "featuretap.command_line", *arguments, **variables)

    def evaluate(self, *expressions: str, **variables: str) -> list[Any]:
        """Evaluate expressions about `registry` in one process, and return their values, which must be JSON data.

        The value of an expression that raises an error is the error's type and message.
        """
        code = (
            "import json, sys\nfrom featuretap import registry\n"
            "def value(expression):\n"
            "    try: return eval(expression)\n"
            "    except Exception as error: return [type(error).__name__, str(error)]\n"
            f"print(json.dumps(list(map(value, {list(expressions)!r}))))"
        )
        ran = self.run("-c", code, **variables)
        assert ran.returncode == 0, ran.stderr
        return list(json.loads(ran.stdout.splitlines()[-1]))

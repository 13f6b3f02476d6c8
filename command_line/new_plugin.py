"""`featuretap new-plugin`: a small distribution that adds a backbone, as a start for a plugin."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

import click

from featuretap import registry
from featuretap.command_line.commands import Command
from featuretap.command_line.interruption import report_unwritten
from featuretap.command_line.printing import print_text
from featuretap.support.errors import OptionError, UnknownBackboneError
from featuretap.support.version import __version__

__all__ = ["files_of", "new_plugin_command"]

NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")

FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$distribution"
version = "0.1.0"
description = "A backbone for featuretap."
requires-python = ">=3.11"
dependencies = ["featuretap>=$version"]

[project.optional-dependencies]
test = ["pytest>=8.3"]

[project.entry-points.featuretap]
$backbone = "$package.plugin"

[tool.setuptools]
packages = ["$package"]

[tool.setuptools.package-data]
$package = ["registry.toml"]
""",
    "$package/__init__.py": '"""The backbone $backbone for featuretap."""\n',
    "$package/plugin.py": '''\
"""What featuretap asks: the entry point names this module."""

from pathlib import Path

from featuretap.registry.hookspecs import hookimpl, load_catalogue

CATALOGUE = load_catalogue(Path(__file__).parent / "registry.toml")


@hookimpl
def featuretap_backbones():
    """Return the backbones of registry.toml."""
    return CATALOGUE.backbones


@hookimpl
def featuretap_weights():
    """Return the published weights of registry.toml."""
    return CATALOGUE.weights
''',
    "$package/networks.py": '''\
"""The network as a table. A stage's first row strides, and its last row is the tap."""

from featuretap.registry.specs import HS, RE, SE, BackboneSpec, Bneck, Conv

$table = BackboneSpec(
    "$backbone",
    stages=(  # kernel, expanded channels, output channels, activation, squeeze-excite
        (Conv(3, 16, HS),),
        (Bneck(3, 48, 24, RE), Bneck(3, 72, 24, RE)),
        (Bneck(5, 72, 40, RE, SE), Bneck(5, 120, 40, RE, SE)),
        (Bneck(3, 160, 64, HS), Bneck(3, 192, 64, HS)),
        (Bneck(5, 256, 96, HS, SE), Conv(1, 384, HS)),
    ),
    description="a small example",
)
''',
    "$package/registry.toml": """\
schema = 1

[backbones.$backbone]
spec = "$package.networks:$table"

[backbones.${backbone}_050]
base = "$backbone"
options = { width = 0.5 }
""",
    "tests/test_conformance.py": """\
from featuretap.registry.testing import BackboneConformance


class TestBackbones(BackboneConformance):
    plugin = "$package.plugin"
""",
    "README.md": """\
# $distribution

Adds the backbone `$backbone` to featuretap.

```bash
pip install -e '.[test]'
featuretap show $backbone
featuretap plugins doctor $distribution
pytest
```
""",
}


def files_of(name: str) -> dict[str, str]:
    """Return path → text of the files of a new distribution; its backbone's name leaves "featuretap-" out."""
    package = name.replace("-", "_")
    backbone = package.removeprefix("featuretap_")
    values = {
        "distribution": name,
        "package": package,
        "backbone": backbone,
        "table": backbone.upper(),
        # Without a suffix such as ".dev1", which the release would precede.
        "version": ".".join(__version__.split(".")[:2]),
    }
    return {Template(path).substitute(values): Template(text).substitute(values) for path, text in FILES.items()}


@click.command("new-plugin", cls=Command, short_help="Write a small plugin to start from.")
@click.argument("name", help="The distribution, and the new folder.")
def new_plugin_command(name: str) -> None:
    """Write a small distribution NAME with a backbone into a new folder of that name.

    It can be installed and tested as it is.

    Example: featuretap new-plugin featuretap-tinynet
    pip install -e './featuretap-tinynet[test]' && pytest featuretap-tinynet
    """
    package = name.replace("-", "_")
    backbone = package.removeprefix("featuretap_")
    if not NAME.fullmatch(name) or not backbone.isidentifier():
        raise click.UsageError(f"{name!r} is not a name for a distribution; write it like featuretap-tinynet")
    if package in sys.stdlib_module_names or keyword.iskeyword(package) or backbone == "featuretap":
        raise click.UsageError(f"{package!r} is the name of a module of Python or of featuretap; choose another")
    if find_spec(package):
        raise click.UsageError(f"{package!r} is the name of a module that is installed; choose another")
    try:
        provider = registry.default.provider(backbone)
    except UnknownBackboneError:
        pass
    else:
        raise click.UsageError(f"{provider!r} has a backbone {backbone!r} already; choose another name")
    folder, files = Path(name), files_of(name)
    if folder.exists():
        raise click.UsageError(f"{name!r} exists already, and is left as it is; choose another name or folder")
    try:
        with report_unwritten(folder), TemporaryDirectory(dir=folder.parent, prefix=".featuretap-") as temporary:
            for path, text in files.items():
                target = Path(temporary, name, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")
            Path(temporary, name).rename(folder)
    except OSError as error:
        raise OptionError(f"cannot write into {name!r}: {error.strerror}") from error
    for path in files:
        print_text(f"wrote: {folder / path}")
    print_text(f"next: pip install -e './{name}[test]' && featuretap show {backbone} && pytest {name}")

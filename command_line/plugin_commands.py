"""`featuretap plugins`, `featuretap plugins doctor` and `featuretap new-plugin`. Only the doctor needs torch."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

import click

from featuretap import registry
from featuretap.catalogue.plugin_loading import Plugin
from featuretap.catalogue.policy import normalise_name
from featuretap.command_line import completion, parameters
from featuretap.command_line.commands import Command, Group
from featuretap.command_line.interruption import report_unwritten
from featuretap.command_line.printing import echo, print_fields, print_json, print_table
from featuretap.support.errors import OptionError, UnknownBackboneError, did_you_mean
from featuretap.support.text import error_line
from featuretap.support.version import __version__

KINDS = ("backbones", "heads", "weights", "runtimes")
DISTRIBUTION = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")

TEMPLATE = {
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


@click.group("plugins", cls=Group, invoke_without_command=True, short_help="List plugins, or examine one.")
@parameters.JSON
@click.pass_context
def plugins_command(context: click.Context, as_json: bool) -> None:
    """List the installed plugins: what each provides, or why it does not.

    Example: featuretap plugins
    featuretap plugins doctor featuretap-mobilenet-v4
    """
    if context.invoked_subcommand:
        if as_json:
            raise click.UsageError("--json is of the table; leave it out, or leave the subcommand out")
        return
    plugins, problems = registry.default.plugins, registry.default.problems
    if as_json:
        print_json({"plugins": [_facts(plugin) for plugin in plugins], "problems": problems})
        return
    print_table(
        ("distribution", "version", "plugin", "status", "provides", ">load time"),
        ((p.distribution, p.version or "–", p.name, p.status, _provides(p) or "–", _milliseconds(p)) for p in plugins),
    )
    for problem in problems:
        echo(problem)
    failed = [plugin for plugin in plugins if plugin.status == "failed"]
    if failed:
        echo(f"featuretap plugins doctor {failed[0].distribution} shows where it failed.")


@plugins_command.command("doctor", cls=Command, short_help="Examine the plugins of a distribution.")
@click.argument("name", shell_complete=completion.plugins, help="The distribution, or the plugin.")
def doctor_command(name: str) -> None:
    """Examine the plugins of the distribution NAME: failures, heavy imports, and declarations that do not hold.

    The exit status is 1 if there are problems.

    Example: featuretap plugins doctor featuretap-mobilenet-v4
    """
    plugins = registry.default.plugins
    found = [plugin for plugin in plugins if normalise_name(name) in (plugin.distribution, normalise_name(plugin.name))]
    if not found:
        known = sorted({plugin.distribution for plugin in plugins} | {plugin.name for plugin in plugins})
        hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
        raise click.UsageError(f"no plugin and no distribution with one is named {name!r}{hint}")
    sound = [_examine(plugin) for plugin in found]
    if not all(sound):
        click.get_current_context().exit(1)


def _examine(plugin: Plugin) -> bool:
    """Print what is found of a plugin, and return whether it has no problems."""
    echo(plugin.label)
    status = f"{plugin.status} in {_milliseconds(plugin)}"
    if plugin.status == "disabled":
        status = "disabled: switched off by FEATURETAP_PLUGINS or by [plugins] in featuretap.toml"
    print_fields({"version": plugin.version, "entry point": plugin.value, "status": status})
    if plugin.status == "disabled":
        return True
    if plugin.error is not None:
        from featuretap.catalogue.plugin_loading import traceback_of

        print_fields({"problem": error_line(plugin.error)})
        for line in traceback_of(plugin.error):
            echo(f"    {line}")
        disable = f'[plugins] disable = ["{plugin.distribution}"] in featuretap.toml'
        print_fields({"next": f"mend that, or switch it off: {disable}"})
        return False
    from featuretap.registry.diagnosis import find_problems

    print_fields({"provides": _provides(plugin)})
    count = 0
    # They are printed when they are found, which takes seconds.
    for count, problem in enumerate(find_problems(plugin, registry.default), start=1):  # noqa: B007
        print_fields({"problem": problem})
    print_fields({"found": f"{count} problem{'s' if count > 1 else ''}" if count else "no problems"})
    advice = "make module and declaration agree; the classes of featuretap.registry.testing test more"
    print_fields({"next": advice if count else None})
    return not count


def _facts(plugin: Plugin) -> dict[str, Any]:
    return {
        "distribution": plugin.distribution,
        "version": plugin.version,
        "plugin": plugin.name,
        "entry_point": plugin.value,
        "status": plugin.status,
        "error": error_line(plugin.error) if plugin.error is not None else None,
        "provides": {kind: [item.name for item in getattr(plugin, kind)] for kind in KINDS},
        "open_namespace": plugin.find_backbone is not None,
        "seconds": plugin.seconds,
    }


def _provides(plugin: Plugin) -> str:
    counts = {kind: len(getattr(plugin, kind)) for kind in KINDS}
    parts = [f"{n} {kind if n > 1 or kind == 'weights' else kind[:-1]}" for kind, n in counts.items() if n]
    return ", ".join([*parts, "an open namespace"] if plugin.find_backbone else parts)


def _milliseconds(plugin: Plugin) -> str:
    return "–" if plugin.status == "disabled" else f"{plugin.seconds * 1000:.1f} ms"


def render_template(name: str) -> dict[str, str]:
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
    return {Template(path).substitute(values): Template(text).substitute(values) for path, text in TEMPLATE.items()}


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
    if not DISTRIBUTION.fullmatch(name) or not backbone.isidentifier():
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
    folder, files = Path(name), render_template(name)
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
        echo(f"wrote: {folder / path}")
    echo(f"next: pip install -e './{name}[test]' && featuretap show {backbone} && pytest {name}")

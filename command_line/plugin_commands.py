"""The commands `featuretap plugins`, `plugins doctor` and `new-plugin`. Only `plugins doctor` needs torch."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

import click

from featuretap import registry
from featuretap.catalogue.catalogue import read_user_catalogue
from featuretap.catalogue.entry_points import PluginEntryPoint, find_entry_points
from featuretap.catalogue.plugin_loading import Plugin, plugin_at
from featuretap.catalogue.policy import normalize_name, read_policy
from featuretap.command_line import completion, parameters
from featuretap.command_line.commands import Command, Group
from featuretap.command_line.interruption import report_unwritten
from featuretap.command_line.printing import echo, print_fields, print_json, print_table
from featuretap.registry.examination import Examination, concerns, examine_all
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
"""Hooks that featuretap calls. The entry point in pyproject.toml names this module."""

from pathlib import Path

from featuretap.registry.hookspecs import hookimpl, load_catalogue

CATALOGUE = load_catalogue(Path(__file__).parent / "registry.toml")


@hookimpl
def featuretap_backbones():
    """Return the backbones in registry.toml."""
    return CATALOGUE.backbones


@hookimpl
def featuretap_weights():
    """Return the weights in registry.toml."""
    return CATALOGUE.weights
''',
    "$package/networks.py": '''\
"""The backbone as a table of rows. The first row of a stage has stride 2, and its last row is the tap."""

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

FACTORY_TEMPLATE = {
    **TEMPLATE,
    "$package/networks.py": '''\
"""Description of the backbone, readable before it is built. This module must not import torch."""

from featuretap.registry.specs import BackboneSpec, Tap

TAPS = {"C1": Tap(16, 2), "C2": Tap(24, 4), "C3": Tap(40, 8), "C4": Tap(64, 16), "C5": Tap(96, 32)}

$table = BackboneSpec("$backbone", taps=TAPS, factory="$package.modules:build", description="a small example")
''',
    "$package/modules.py": '''\
"""The network, and the factory that featuretap calls. Replace `Network` with your network."""

from torch import nn

from $package.networks import TAPS


class Network(nn.Module):
    """Return a list with the map of each stage for images (N, 3, H, W), as timm's `features_only=True` models do."""

    def __init__(self, channels):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in zip((3, *channels), channels)
        )

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Backbone(nn.Module):
    """Wrap a network to return its maps as a dict, in the order of `requested`."""

    def __init__(self, network, levels, requested):
        super().__init__()
        self.network = network
        self.levels = levels
        self.requested = requested

    def forward(self, images):
        maps = dict(zip(self.levels, self.network(images)))
        return {name: maps[name] for name in self.requested}


def build(spec, *, taps):
    """Return the backbone for `taps`, without the stages after the last tap."""
    levels = list(TAPS)[: 1 + max(map(list(TAPS).index, taps))]
    return Backbone(Network([TAPS[level].channels for level in levels]), levels, taps)
''',
    "$package/registry.toml": """\
schema = 1

[backbones.$backbone]
spec = "$package.networks:$table"
""",
    "tests/test_conformance.py": """\
from featuretap.registry.testing import BackboneConformance


class TestBackbones(BackboneConformance):
    plugin = "$package.plugin"
    # scripts = False  # if torch.jit.script cannot compile the network
    # sizes = ((224, 224),)  # if the network accepts only some image sizes
""",
}


@click.group("plugins", cls=Group, invoke_without_command=True, short_help="List or check plugins.")
@parameters.JSON
@click.pass_context
def plugins_command(context: click.Context, as_json: bool) -> None:
    """List the installed plugins, with their status and what they provide.

    Example: featuretap plugins
    featuretap plugins doctor featuretap-mobilenet-v4
    """
    if context.invoked_subcommand:
        if as_json:
            raise click.UsageError("--json applies to the list of plugins; leave out --json or the subcommand")
        return
    plugins, problems = registry.default.plugins, registry.default.problems
    if as_json:
        print_json({"plugins": [_facts(plugin) for plugin in plugins], "problems": problems})
        return
    print_table(
        ("distribution", "version", "plugin", "status", "provides", ">load time"),
        map(_row, plugins),
    )
    for problem in problems:
        echo(problem)
    failed = [plugin for plugin in plugins if plugin.status == "failed"]
    if failed:
        echo(f"See where it failed: featuretap plugins doctor {failed[0].distribution}")


@plugins_command.command("doctor", cls=Command, short_help="Check plugins for problems.")
@click.argument(
    "name",
    required=False,
    shell_complete=completion.plugins,
    help="Name of a distribution or plugin.  [default: all but the built-in plugins]",
)
def doctor_command(name: str | None) -> None:
    """Check that plugins load, and that their models match their declarations.

    Each plugin runs in a separate process, which is stopped if a step takes more than a minute. The command reports
    plugins that fail, crash or hang, that import PyTorch on import or in a hook, or that change global state; names
    that conflict; and backbones and heads whose shapes or counts differ from their declaration. Options, gradients,
    files and export are checked only by the plugin's tests (featuretap.registry.testing). The exit status is 1 if
    there are problems.

    Example: featuretap plugins doctor featuretap-mobilenet-v4
    """
    user = read_user_catalogue()
    policy = read_policy(user.disable, user.only)
    points = find_entry_points()
    found = [point for point in points if _is_meant(name, point)]
    if name is not None and not found:
        known = sorted({point.distribution for point in points} | {point.name for point in points})
        hint = did_you_mean(name, known) or f"; available: {', '.join(known)}"
        raise click.UsageError(f"no plugin or plugin distribution named {name!r} is installed; install it first{hint}")
    if not found:
        echo("no plugins are installed; check the built-in plugins with: featuretap plugins doctor featuretap")
        return
    allowed = [point for point in points if point.built_in or policy.allows(point.distribution)]
    if find_spec("torch") is None and any(point in allowed for point in found):
        # Report the missing torch once, before any process needs it.
        raise ModuleNotFoundError(name="torch")
    # A single plugin has no other plugin's names to conflict with.
    several = sum(not point.built_in for point in allowed) > 1
    with closing(examine_all([*[None] * several, *(point for point in found if point in allowed)])) as examinations:
        together = next(examinations) if several else Examination()
        sound = [_report(point, next(examinations) if point in allowed else None, together) for point in found]
    if not all(sound):
        click.get_current_context().exit(1)


def _is_meant(name: str | None, point: PluginEntryPoint) -> bool:
    """Return whether to check a plugin: it has this name, or there is no name and the plugin is not built in."""
    if name is None:
        return not point.built_in
    return normalize_name(name) in (point.distribution, normalize_name(point.name))


def _report(point: PluginEntryPoint, found: Examination | None, together: Examination) -> bool:
    """Print the result for a plugin.

    Args:
        point: the plugin's entry point.
        found: result of checking the plugin, or None if it is disabled.
        together: result of loading all plugins in one process.

    Returns:
        True if the plugin has no problems.
    """
    plugin = plugin_at(point)
    echo(plugin.label)
    fields = {"version": plugin.version, "entry point": plugin.value}
    if found is None:
        status = "disabled by FEATURETAP_PLUGINS or by [plugins] in featuretap.toml"
        print_fields({**fields, "status": status})
        return True
    seconds = f" in {_milliseconds(found.seconds)}" if found.seconds is not None else ""
    print_fields({**fields, "status": f"{found.status}{seconds}"})
    if found.status == "loaded":
        print_fields({"provides": _provides(found.provides, found.open_namespace)})
        more = [problem for problem in together.problems if concerns(problem, plugin.distribution)]
        found.problems += [problem for problem in more if problem not in found.problems]
    for problem in found.problems:
        print_fields({"problem": problem})
    for line in found.traceback:
        echo(f"    {line}")
    count = len(found.problems)
    if found.status == "failed":
        disable = f'[plugins] disable = ["{plugin.distribution}"] in featuretap.toml'
        print_fields({"next": f"fix the plugin, or disable it: {disable}"})
        return False
    if not together.complete:
        print_fields({"names": f"not compared with other plugins: {together.problems[-1]}"})
    print_fields({"found": f"{count} problem{'s' if count > 1 else ''}" if count else "no problems"})
    advice = "make the module match its declaration; the classes of featuretap.registry.testing check more"
    print_fields({"next": advice if count else None})
    return not count


def _row(plugin: Plugin) -> tuple[str, ...]:
    counts = {kind: len(getattr(plugin, kind)) for kind in KINDS}
    provides = _provides(counts, plugin.find_backbone is not None) or "–"
    time = "–" if plugin.status == "disabled" else _milliseconds(plugin.seconds)
    return plugin.distribution, plugin.version or "–", plugin.name, plugin.status, provides, time


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


def _provides(counts: Mapping[str, int], open_namespace: bool) -> str:
    parts = [f"{n} {kind if n > 1 or kind == 'weights' else kind[:-1]}" for kind, n in counts.items() if n]
    return ", ".join([*parts, "a namespace"] if open_namespace else parts)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def render_template(name: str, *, factory: bool = False) -> dict[str, str]:
    """Return the files of a new plugin distribution.

    Args:
        name: name of the distribution; the backbone's name is the same without "featuretap-".
        factory: whether a factory function builds the backbone, instead of a table.

    Returns:
        Path → text.
    """
    package = name.replace("-", "_")
    backbone = package.removeprefix("featuretap_")
    values = {
        "distribution": name,
        "package": package,
        "backbone": backbone,
        "table": backbone.upper(),
        # Major and minor only: a suffix such as ".dev1" could exclude the release.
        "version": ".".join(__version__.split(".")[:2]),
    }
    template = FACTORY_TEMPLATE if factory else TEMPLATE
    return {Template(path).substitute(values): Template(text).substitute(values) for path, text in template.items()}


@click.command("new-plugin", cls=Command, short_help="Create a plugin project to start from.")
@click.argument("name", help="Name of the distribution and of its folder.")
@click.option(
    "--factory", is_flag=True, help="Wrap a PyTorch module, such as a timm model, instead of defining a table."
)
def new_plugin_command(name: str, factory: bool) -> None:
    """Create the folder NAME with a plugin distribution that adds a small example backbone.

    The distribution can be installed and tested immediately.

    Example: featuretap new-plugin featuretap-tinynet
    pip install -e './featuretap-tinynet[test]' && pytest featuretap-tinynet
    """
    package = name.replace("-", "_")
    backbone = package.removeprefix("featuretap_")
    if not DISTRIBUTION.fullmatch(name) or not backbone.isidentifier():
        raise click.UsageError(f"{name!r} is not a distribution name; use the form featuretap-tinynet")
    if package in sys.stdlib_module_names or keyword.iskeyword(package) or backbone == "featuretap":
        raise click.UsageError(f"the name {package!r} is reserved by Python or featuretap; choose another name")
    if find_spec(package):
        raise click.UsageError(f"a module named {package!r} is already installed; choose another name")
    try:
        provider = registry.default.provider(backbone)
    except UnknownBackboneError:
        pass
    else:
        raise click.UsageError(f"{provider!r} already provides a backbone {backbone!r}; choose another name")
    folder, files = Path(name), render_template(name, factory=factory)
    if folder.exists():
        raise click.UsageError(f"{name!r} already exists; choose another name or folder")
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

"""`featuretap plugins` and `featuretap plugins doctor`. The first needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import click

from featuretap import registry
from featuretap.catalogue.plugin_loading import Plugin
from featuretap.catalogue.policy import normalised
from featuretap.command_line import completing
from featuretap.command_line.commands import Command, Group
from featuretap.command_line.printing import print_table, print_text
from featuretap.support.errors import did_you_mean
from featuretap.support.text import error_line

__all__ = ["plugins_command"]

KINDS = ("backbones", "heads", "weights", "runtimes")


@click.group("plugins", cls=Group, invoke_without_command=True, short_help="List plugins, or examine one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
        click.echo(json.dumps({"plugins": [_facts(plugin) for plugin in plugins], "problems": problems}, indent=2))
        return
    columns = [("distribution", "left"), ("version", "left"), ("plugin", "left"), ("status", "left")]
    rows = [
        (p.distribution, p.version or "–", p.name, p.status, _provides(p) or "–", _milliseconds(p)) for p in plugins
    ]
    print_table([*columns, ("provides", "left"), ("load time", "right")], rows)
    for problem in problems:
        print_text(problem)
    failed = [plugin for plugin in plugins if plugin.status == "failed"]
    if failed:
        print_text(f"featuretap plugins doctor {failed[0].distribution} shows where it failed.")


@plugins_command.command("doctor", cls=Command, short_help="Examine the plugins of a distribution.")
@click.argument("name", shell_complete=completing.plugins, help="The distribution, or the plugin.")
def doctor_command(name: str) -> None:
    """Examine the plugins of the distribution NAME: failures, heavy imports, and declarations that do not hold.

    Exits with 1 where something is found.

    Example: featuretap plugins doctor featuretap-mobilenet-v4
    """
    plugins = registry.default.plugins
    found = [plugin for plugin in plugins if normalised(name) in (plugin.distribution, normalised(plugin.name))]
    if not found:
        known = sorted({plugin.distribution for plugin in plugins} | {plugin.name for plugin in plugins})
        hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
        raise click.UsageError(f"no plugin and no distribution with one is named {name!r}{hint}")
    well = [_examined(plugin) for plugin in found]
    if not all(well):
        click.get_current_context().exit(1)


def _examined(plugin: Plugin) -> bool:
    """Print what is found of a plugin, and return whether it is well."""
    print_text(plugin.words)
    _print_fact("version", plugin.version)
    _print_fact("entry point", plugin.value)
    if plugin.status == "disabled":
        _print_fact("status", "disabled: switched off by FEATURETAP_PLUGINS or by [plugins] in featuretap.toml")
        return True
    _print_fact("status", f"{plugin.status} in {_milliseconds(plugin)}")
    if plugin.error is not None:
        from featuretap.catalogue.tracebacks import traceback_of

        _print_fact("problem", error_line(plugin.error))
        for line in traceback_of(plugin.error):
            print_text(f"    {line}")
        _print_fact(
            "next", f'mend that, or switch it off: [plugins] disable = ["{plugin.distribution}"] in featuretap.toml'
        )
        return False
    _print_fact("provides", _provides(plugin))
    from featuretap.command_line.diagnosis import findings

    problems = list(_told(findings(plugin, registry.default)))
    _print_fact("found", f"{len(problems)} problem{'s' if problems[1:] else ''}" if problems else "no problems")
    if problems:
        _print_fact("next", "make module and declaration agree; the classes of featuretap.registry.testing test more")
    return not problems


def _told(findings: Iterable[str]) -> Iterator[str]:
    """Print problems when they are found, which takes seconds."""
    for finding in findings:
        _print_fact("problem", finding)
        yield finding


def _print_fact(label: str, text: str) -> None:
    if text:
        print_text(f"  {label:<12} {text}")


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
    words = [f"{count} {kind if count != 1 else _one(kind)}" for kind, count in counts.items() if count]
    return ", ".join([*words, *(["an open namespace"] if plugin.find_backbone else [])])


def _one(kind: str) -> str:
    return kind if kind == "weights" else kind.removesuffix("s")


def _milliseconds(plugin: Plugin) -> str:
    return "–" if plugin.status == "disabled" else f"{plugin.seconds * 1000:.1f} ms"

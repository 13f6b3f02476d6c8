"""`featuretap plugins` and `featuretap plugins doctor`. The first needs no torch."""

from __future__ import annotations

from typing import Any

import click

from featuretap import registry
from featuretap.catalogue.plugin_loading import Plugin
from featuretap.catalogue.policy import normalise_name
from featuretap.command_line import completion
from featuretap.command_line.commands import Command, Group
from featuretap.command_line.options import JSON
from featuretap.command_line.printing import print_fields, print_json, print_table, print_text
from featuretap.support.errors import did_you_mean
from featuretap.support.text import error_line

__all__ = ["plugins_command"]

KINDS = ("backbones", "heads", "weights", "runtimes")


@click.group("plugins", cls=Group, invoke_without_command=True, short_help="List plugins, or examine one.")
@JSON
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
    columns = [(title, "left") for title in ("distribution", "version", "plugin", "status", "provides")]
    rows = [
        (p.distribution, p.version or "–", p.name, p.status, _provides(p) or "–", _milliseconds(p)) for p in plugins
    ]
    print_table([*columns, ("load time", "right")], rows)
    for problem in problems:
        print_text(problem)
    failed = [plugin for plugin in plugins if plugin.status == "failed"]
    if failed:
        print_text(f"featuretap plugins doctor {failed[0].distribution} shows where it failed.")


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
    print_text(plugin.label)
    print_fields({"version": plugin.version, "entry point": plugin.value})
    if plugin.status == "disabled":
        print_fields({"status": "disabled: switched off by FEATURETAP_PLUGINS or by [plugins] in featuretap.toml"})
        return True
    print_fields({"status": f"{plugin.status} in {_milliseconds(plugin)}"})
    if plugin.error is not None:
        from featuretap.catalogue.tracebacks import traceback_of

        print_fields({"problem": error_line(plugin.error)})
        for line in traceback_of(plugin.error):
            print_text(f"    {line}")
        disable = f'[plugins] disable = ["{plugin.distribution}"] in featuretap.toml'
        print_fields({"next": f"mend that, or switch it off: {disable}"})
        return False
    print_fields({"provides": _provides(plugin)})
    from featuretap.registry.diagnosis import find_problems

    count = 0
    # They are printed when they are found, which takes seconds.
    for count, problem in enumerate(find_problems(plugin, registry.default), start=1):  # noqa: B007
        print_fields({"problem": problem})
    print_fields({"found": f"{count} problem{'s' if count > 1 else ''}" if count else "no problems"})
    if count:
        advice = "make module and declaration agree; the classes of featuretap.registry.testing test more"
        print_fields({"next": advice})
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
    parts = [
        f"{count} {kind.removesuffix('s') if count == 1 and kind != 'weights' else kind}"
        for kind, count in counts.items()
        if count
    ]
    return ", ".join([*parts, *(["an open namespace"] if plugin.find_backbone else [])])


def _milliseconds(plugin: Plugin) -> str:
    return "–" if plugin.status == "disabled" else f"{plugin.seconds * 1000:.1f} ms"

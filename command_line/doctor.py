"""`featuretap doctor`. It works without PyTorch, and where packages are broken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from featuretap.command_line import parameters
from featuretap.command_line.commands import Command
from featuretap.command_line.printing import echo, print_json
from featuretap.support.progress import progress_steps
from featuretap.support.text import one_line
from featuretap.support.version import __version__

Section = Mapping[str, str]


@click.command("doctor", cls=Command, short_help="Check the installation.")
@click.option("--quick", is_flag=True, help="Faster: do not import packages or measure runtimes.")
@parameters.JSON
@click.pass_context
def doctor_command(context: click.Context, quick: bool, as_json: bool) -> None:
    """Check the installation, and print a report for the bug-report form.

    The report lists versions, processor, the speed of each runtime with MobileNetV3-Large, plugins, weights on this
    machine, folders, environment variables, and problems with what to do about them. Nothing is downloaded, and "~"
    replaces the home folder. The exit status is 1 if there are problems.

    Example: featuretap doctor
    featuretap doctor --quick --json
    """
    from featuretap.workflows.measuring.installation import examine_installation

    with progress_steps() as begin:
        begin("examining the installation", None)
        report = examine_installation(quick=quick).as_json()
    if as_json:
        print_json(report)
    else:
        _print_report(report, quick)
    if report["problems"]:
        context.exit(1)


def _print_report(report: Mapping[str, Any], quick: bool) -> None:
    sections: dict[str, Section] = {
        "Versions": _versions(report),
        "Processor": _processor(report),
        f"Speed of {report['backbone']}, 224×224 pixels, 1 image": _runtimes(report),
        "Plugins": {_plugin_label(plugin): _plugin_state(plugin) for plugin in report["plugins"]},
        "Weights on this machine": {entry["name"]: entry["path"] for entry in report["weights"]},
        "Folders": {folder["name"]: f"{folder['path']} ({_folder_state(folder)})" for folder in report["folders"]},
        "Environment variables": report["environment"],
    }
    for heading, fields in sections.items():
        echo(heading)
        width = max(map(len, fields), default=0) + 1
        for name, value in fields.items() or {"none": ""}.items():
            text = one_line(value) if "\n" in value else value
            echo(f"  {f'{name}:':<{width}} {text}" if text else f"  {name}")
        echo()
    skipped = " Packages were not imported, and runtimes not measured." if quick else ""
    echo("Problems" if report["problems"] else f"No problems found.{skipped}")
    for number, found in enumerate(report["problems"], 1):
        echo(f"  {number}. {found['problem']}\n     → {found['advice']}")


def _versions(report: Mapping[str, Any]) -> Section:
    packages = {package["name"]: _package_state(package) for package in report["packages"]}
    return {"featuretap": __version__, "Python": report["python"], "system": report["system"], **packages}


def _package_state(package: Mapping[str, Any]) -> str:
    if package["error"]:
        return f"{package['version'] or 'unknown version'}, cannot be imported: {package['error']}"
    if package["version"]:
        return str(package["version"])
    extra = f"[{package['extra']}]" if package["extra"] else ""
    return f"not installed (pip install {repr(f'featuretap{extra}') if extra else package['name']})"


def _processor(report: Mapping[str, Any]) -> Section:
    units = report["vector_units"]
    cuda = f" (it is built for CUDA {report['cuda']})" if report["cuda"] else ""
    fields = {
        "name": report["processor"],
        "vector units": "not listed by the system" if units is None else ", ".join(units) or "none",
        "cores": str(report["cores"]),
        "threads": ", ".join(f"{count} in {library}" for library, count in report["threads"].items()),
        "GPU": ", ".join(report["gpus"]) or f"none that PyTorch can use{cuda}",
    }
    return {name: value for name, value in fields.items() if value}


def _runtimes(report: Mapping[str, Any]) -> Section:
    fields = {}
    for runtime in report["runtimes"]:
        text = runtime["note"] or f"fails: {runtime['error']}"
        if runtime["milliseconds"] is not None:
            fastest = " (fastest)" if runtime["name"] == report["fastest"] else ""
            text = f"{runtime['milliseconds']:.2f} ms{fastest}"
        fields[runtime["name"]] = text
    return fields or {"not measured": ""}


def _plugin_label(plugin: Mapping[str, Any]) -> str:
    return f"{plugin['plugin']} ({plugin['distribution']} {plugin['version'] or 'without version'})"


def _plugin_state(plugin: Mapping[str, Any]) -> str:
    return f"{plugin['status']}: {plugin['error']}" if plugin["error"] else str(plugin["status"])


def _folder_state(folder: Mapping[str, Any]) -> str:
    if not folder["exists"]:
        return "does not exist" if folder["writable"] else "does not exist and cannot be created"
    return "writable" if folder["writable"] else "not writable"

"""`featuretap save`, `featuretap convert` and `featuretap inspect`. The last needs no torch for safetensors files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import click

from featuretap import registry
from featuretap.command_line import completing
from featuretap.command_line.commands import Command
from featuretap.command_line.interruption import unless_written
from featuretap.command_line.parameters import OptionPair
from featuretap.command_line.printing import print_table, print_text
from featuretap.support.text import one_line
from featuretap.weights.files import sha256_of, weights_file
from featuretap.weights.header import Stored, read_header
from featuretap.weights.metadata import Record, read_record

__all__ = ["convert_command", "inspect_command", "save_command"]

LAYOUT = click.option(
    "--layout",
    type=click.Choice(["featuretap", "torchvision", "timm"]),
    default="featuretap",
    show_default=True,
    help="Whose names the tensors get.",
)
PATH = click.Path(path_type=Path)

NAMED = 5
"""Classes that are named where there are more."""


@click.command("save", cls=Command, short_help="Save a backbone with published weights.")
@click.argument("name", shell_complete=completing.backbones, help="The backbone.")
@click.argument("target", type=PATH, help="The file or folder that is written.")
@click.option(
    "--weights",
    shell_complete=completing.weights,
    help="A tag, a file, or 'none' for fresh ones.  [default: the catalogue's default]",
)
@click.option("--features-only", is_flag=True, help="The bare backbone, without a classifier.")
@click.option("--num-classes", type=int, help="Classes of the head.")
@click.option("--option", "pairs", type=OptionPair(), multiple=True, help="An option of the backbone; can be repeated.")
@LAYOUT
def save_command(
    name: str,
    target: Path,
    weights: str | None,
    features_only: bool,
    num_classes: int | None,
    pairs: tuple[tuple[str, Any], ...],
    layout: str,
) -> None:
    """Build the backbone NAME with published weights, and save it as TARGET (.safetensors, or a folder).

    Example: featuretap save mobilenet_v3_large large.safetensors --features-only
    """
    pretrained = {None: True, "none": False}.get(weights, weights)
    asked = {"features_only": features_only, "num_classes": num_classes, "pretrained": pretrained, **dict(pairs)}
    with unless_written(target):
        saved = registry.save(registry.build(name, **asked), target, layout)
    print_text(f"saved: {saved}")


@click.command("convert", cls=Command, short_help="Rewrite weights in another library's layout.")
@click.argument("source", type=PATH, help="A file of weights, or a folder with one.")
@click.argument("target", type=PATH, help="The file or folder that is written.")
@LAYOUT
def convert_command(source: Path, target: Path, layout: str) -> None:
    """Rewrite the weights SOURCE (.safetensors, .pth or a folder) in another layout, as TARGET.

    Example: featuretap convert mobilenet_v3_large-5c1a4163.pth timm-folder --layout timm
    """
    with unless_written(target):
        saved = registry.convert(source, target, layout)
    print_text(f"saved: {saved}")


@click.command("inspect", cls=Command, short_help="Show what a file of weights holds.")
@click.argument("file", type=PATH, help="A file of weights, or a folder with one.")
@click.option("--tensors", is_flag=True, help="List every tensor, too.")
@click.option("--finite", is_flag=True, help="Refuse weights that hold NaN or infinity.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, tensors included.")
def inspect_command(file: Path, tensors: bool, finite: bool, as_json: bool) -> None:
    """Show what a file of weights holds: of which model, in which layout, how many tensors.

    Example: featuretap inspect large.safetensors
    """
    path = weights_file(file)
    if path.suffix == ".safetensors" and not finite:
        header = read_header(path)
        stored, record = header.tensors, read_record(path, header.metadata)
    else:
        from featuretap.command_line.opened import opened

        stored, record = opened(path, finite)
    facts = _facts(path, stored, record)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print_facts(facts)
        if tensors:
            _print_tensors(facts["tensors"])


def _facts(path: Path, tensors: Mapping[str, Stored], record: Record | None) -> dict[str, Any]:
    described, digest = record is not None, sha256_of(path)
    if record is None:
        from featuretap.weights.identification import identified
        from featuretap.weights.timm_config import read_timm_config

        shapes = {name: stored.shape for name, stored in tensors.items()}
        record = identified(shapes, digest, registry.default, read_timm_config(path))
    about: dict[str, Any] = {"name": None, "layout": None}
    if record:
        said = record.description
        about = {
            "name": said.name,
            "options": dict(said.options),
            "taps": list(said.taps),
            "head": said.head,
            "num_classes": said.num_classes,
            "layout": record.layout,
            "norm_eps": dict(record.norm_eps),
            "classes": said.classes,
            "weights": str(said.weights) if said.weights else None,
            # What is only recognised by its tensors says nothing of the images it was trained with.
            "preprocessing": said.preprocessing.as_table() if described or said.weights else None,
        }
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": digest,
        "described": described,
        **about,
        "tensors": {name: {"dtype": stored.dtype, "shape": list(stored.shape)} for name, stored in tensors.items()},
    }


def _print_facts(facts: dict[str, Any]) -> None:
    name = facts["name"] or "no model that is known here"
    said = "" if facts["described"] or not facts["name"] else " (recognised by its tensors)"
    print_text(f"{facts['file']}: {name}{said}")
    tensors = facts["tensors"]
    types = Counter(tensor["dtype"] for tensor in tensors.values())
    numbers = sum(prod(tensor["shape"]) for tensor in tensors.values())
    counted = ", ".join(f"{count} {dtype}" for dtype, count in types.most_common())
    lines = {
        "options": _pairs(facts.get("options")),
        "taps": ", ".join(facts.get("taps") or ()),
        "head": facts.get("head") and _head_in_words(facts),
        "layout": facts["layout"],
        "norm eps": _pairs(facts.get("norm_eps")),
        "weights": facts.get("weights"),
        "prepared": _pairs(facts.get("preprocessing")),
        "tensors": f"{len(tensors)} ({counted}), {numbers:,} numbers, {facts['bytes']:,} bytes",
        "SHA-256": facts["sha256"],
    }
    for label, text in lines.items():
        if text:
            print_text(f"  {label:<9} {text}")


def _print_tensors(tensors: Mapping[str, Any]) -> None:
    def natural(name: str) -> list[str]:
        # "stages.C4.10" comes behind "stages.C4.9".
        return [f"{int(part):09}" if part.isdigit() else part for part in name.split(".")]

    rows = [
        (name, "×".join(map(str, tensors[name]["shape"])) or "–", tensors[name]["dtype"])
        for name in sorted(tensors, key=natural)
    ]
    print_table([("tensor", "left"), ("shape", "right"), ("numbers", "left")], rows)


def _head_in_words(facts: Mapping[str, Any]) -> str:
    count, classes = facts["num_classes"], facts["classes"]
    if count is None:
        return str(facts["head"])
    if isinstance(classes, str):
        return f"{facts['head']}, {count} classes {classes}".strip()
    more = f" and {count - NAMED} more" if count > NAMED else ""
    return f"{facts['head']}, {count} classes: {', '.join(map(one_line, classes[:NAMED]))}{more}"


def _pairs(table: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name}={value}" for name, value in (table or {}).items())

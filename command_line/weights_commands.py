"""`featuretap save`, `convert`, `push` and `inspect`. The last needs no torch for safetensors files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import click

from featuretap import registry
from featuretap.command_line import completion, parameters
from featuretap.command_line.commands import Command
from featuretap.command_line.interruption import report_unwritten
from featuretap.command_line.printing import echo, format_options, print_fields, print_json, print_table
from featuretap.specs.description import Description
from featuretap.support.text import first_few, one_line
from featuretap.weights.downloads import find_or_fetch
from featuretap.weights.files import weights_file
from featuretap.weights.header import Stored, read_header
from featuretap.weights.metadata import Record, read_record
from featuretap.weights.open_file import OpenFile

TARGET = click.argument("target", type=parameters.PATH, help="The file or folder to write.")
LAYOUT = click.option(
    "--layout",
    shell_complete=completion.layouts,
    default="featuretap",
    help="Library whose tensor names to write: featuretap, torchvision, timm, paddle, or one that a plugin adds.",
)
MOST_CLASSES = 5
"""Classes that are named; of more, the count is printed."""


class HeadFile(click.ParamType[tuple[str, str]]):
    """A head's name with the file of its model: "road=segmenter.safetensors"."""

    name = "NAME=FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return (name, file)."""
        if isinstance(value, tuple):
            return value
        name, _, file = value.partition("=")
        if not (name and file):
            self.fail(f"{value!r} names no head; write NAME=FILE, such as road=segmenter.safetensors", param, ctx)
        return name, file


@click.command("save", cls=Command, short_help="Save a backbone with published weights.")
@click.argument("name", shell_complete=completion.backbones, help="The backbone.")
@TARGET
@parameters.weights_option()
@parameters.FEATURES_ONLY
@parameters.heads_option("A head; can be repeated, with names: road=lraspp.  [default: that of the weights]")
@parameters.NUM_CLASSES
@parameters.backbone_options("An option of the backbone, or road.num_classes=2 of a head; can be repeated.")
@LAYOUT
def save_command(
    name: str, target: Path, weights: str | None, layout: str, options: dict[str, Any], **arguments: Any
) -> None:
    """Build the backbone NAME with published weights, and save it as TARGET (.safetensors, or a folder).

    Example: featuretap save mobilenet_v3_large large.safetensors --features-only
    """
    from featuretap.workflows.inference.modules import open_model

    with report_unwritten(target):
        model = open_model(name, weights, **arguments, **options)
        echo(f"saved: {registry.save(model, target, layout)}")


@click.command("convert", cls=Command, short_help="Rewrite weights in another library's layout.")
@click.argument("source", type=click.Path(), help="A weights file, a folder with one, or an address.")
@TARGET
@LAYOUT
@parameters.one_head_option("Extract this head of a SOURCE with several, with the backbone.")
def convert_command(source: str, target: Path, layout: str, head: str | None) -> None:
    """Rewrite the weights SOURCE (a file, a folder or an address) in another layout, as TARGET.

    Example: featuretap convert mobilenet_v3_large-5c1a4163.pth timm-folder --layout timm
    featuretap convert several.safetensors road.safetensors --head road
    """
    with report_unwritten(target):
        if head is None:
            saved = registry.convert(source, target, layout)
        else:
            saved = registry.save(registry.select_head(registry.load(source), head), target, layout)
    echo(f"saved: {saved}")


@click.command("join", cls=Command, short_help="Join models with one backbone into one with several heads.")
@click.argument(
    "files", nargs=-1, required=True, type=HeadFile(), metavar="NAME=FILE...", help="Name of a head, and its file."
)
@TARGET
def join_command(files: tuple[tuple[str, str], ...], target: Path) -> None:
    """Write the models of FILES, whose backbones are equal bit for bit, as TARGET: one backbone with several heads.

    Example: featuretap join objects=detector.safetensors road=segmenter.safetensors several.safetensors
    """
    names = [name for name, _ in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise click.UsageError(f"{twice!r} is the name of two heads; give each one of its own")
    with report_unwritten(target):
        saved = registry.save(registry.join(dict(files)), target)
    echo(f"saved: {saved}")


@click.command("push", cls=Command, short_help="Publish a model on the Hugging Face hub.")
@click.argument("file", type=click.Path(), help="A weights file, a folder with one, or an address.")
@click.argument("repository", metavar="OWNER/NAME", help="The repository; it is created unless it exists.")
@LAYOUT
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
def push_command(file: str, repository: str, layout: str, private: bool) -> None:
    """Publish the model of a weights FILE as OWNER/NAME on the Hugging Face hub, with the login of `hf auth login`.

    Example: featuretap push large.safetensors OWNER/NAME --layout timm
    """
    echo(f"pushed: {registry.push(registry.load(file), repository, layout, private=private)}")


@click.command("inspect", cls=Command, short_help="Show what a weights file contains.")
@click.argument("file", type=click.Path(), help="A weights file, a folder with one, or an address.")
@click.option("--tensors", is_flag=True, help="List every tensor, too.")
@click.option("--finite", is_flag=True, help="Refuse weights that contain NaN or infinity.")
@parameters.JSON
def inspect_command(file: str, tensors: bool, finite: bool, as_json: bool) -> None:
    """Show what a weights file contains: of which model, in which layout, how many tensors.

    Example: featuretap inspect large.safetensors
    """
    opened = OpenFile(weights_file(find_or_fetch(file, registry.default.mirrors)))
    facts = _facts(opened, *_read(opened, finite))
    if as_json:
        print_json(facts)
        return
    _print_facts(facts)
    if tensors:
        rows = [(name, facts["tensors"][name]) for name in sorted(facts["tensors"], key=_natural)]
        cells = ((name, "×".join(map(str, row["shape"])) or "–", row["dtype"]) for name, row in rows)
        print_table(("tensor", ">shape", "dtype"), cells)


def _read(file: OpenFile, finite: bool) -> tuple[Mapping[str, Stored], Record | None]:
    """Return the tensors of a file and its record: from its header, or from the tensors themselves."""
    if file.path.suffix == ".safetensors" and not finite:
        header = read_header(file)
        return header.tensors, read_record(file.path, header.metadata)
    from featuretap.weights.reading import read_open_file
    from featuretap.weights.torch_tensors import DTYPES, check_finite

    checkpoint = read_open_file(file)
    if finite:
        check_finite(checkpoint)
    names = {dtype: name for name, dtype in DTYPES.items()}
    tensors = {
        name: Stored(names.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
        for name, tensor in sorted(checkpoint.tensors.items())
    }
    return tensors, checkpoint.record


def _facts(file: OpenFile, tensors: Mapping[str, Stored], record: Record | None) -> dict[str, Any]:
    described, digest = record is not None, file.sha256()
    if record is None:
        from featuretap.weights.identification import identify_checkpoint
        from featuretap.weights.timm_config import read_timm_config

        shapes = {name: stored.shape for name, stored in tensors.items()}
        record = identify_checkpoint(shapes, digest, registry.default, read_timm_config(file.path))
    model: dict[str, Any] = {"name": None, "layout": None}
    if record:
        description = record.description
        model = {
            "name": description.name,
            "options": dict(description.options),
            "taps": list(description.taps),
            "head": description.head,
            "num_classes": description.num_classes,
            "layout": record.layout,
            "norm_eps": dict(record.norm_eps),
            "classes": description.classes,
            "heads": {
                name: {
                    "head": head.head,
                    "reads": list(head.taps),
                    "num_classes": head.num_classes,
                    "classes": head.classes,
                    "options": _head_options(head, description),
                    "preprocessing": head.preprocessing.as_table(),
                }
                for name, head in description.heads.items()
            },
            "weights": str(description.weights) if description.weights else None,
            # A file that is only identified by its tensors states no preprocessing.
            "preprocessing": description.preprocessing.as_table() if described or description.weights else None,
        }
    return {
        "file": str(file.path),
        "bytes": file.size,
        "sha256": digest,
        "described": described,
        **model,
        "tensors": {name: {"dtype": stored.dtype, "shape": list(stored.shape)} for name, stored in tensors.items()},
    }


def _print_facts(facts: dict[str, Any]) -> None:
    note = "" if facts["described"] or not facts["name"] else " (identified by its tensors)"
    echo(f"{facts['file']}: {facts['name'] or 'unknown model'}{note}")
    tensors = facts["tensors"].values()
    types = Counter(tensor["dtype"] for tensor in tensors)
    counts = ", ".join(f"{count} {dtype}" for dtype, count in types.most_common())
    values = sum(prod(tensor["shape"]) for tensor in tensors)
    fields = {
        "options": format_options(facts.get("options")),
        "taps": ", ".join(facts.get("taps") or ()),
        "head": _format_head(facts),
        "heads": ", ".join(facts.get("heads") or ()),
        "layout": facts["layout"],
        "norm eps": format_options(facts.get("norm_eps")),
        "weights": facts.get("weights"),
        # That of the heads, which may be another than the backbone's alone.
        "prepared": "" if facts.get("heads") else format_options(facts.get("preprocessing")),
        "tensors": f"{len(tensors)} ({counts}), {values:,} values, {facts['bytes']:,} bytes",
        "SHA-256": facts["sha256"],
    }
    print_fields(fields, width=9)
    if facts.get("heads"):
        rows = [
            (name, _format_head(head), ", ".join(head["reads"]), format_options(head["options"]))
            for name, head in facts["heads"].items()
        ]
        print_table(("name", "head", "reads", "options"), rows)


def _head_options(head: Description, backbone: Description) -> dict[str, Any]:
    return {name: value for name, value in head.options.items() if name not in backbone.options}


def _natural(name: str) -> list[str]:
    # "stages.C4.10" follows "stages.C4.9".
    return [part.zfill(9) if part.isdigit() else part for part in name.split(".")]


def _format_head(facts: Mapping[str, Any]) -> str:
    if facts.get("num_classes") is None:
        return facts.get("head") or ""
    count, classes = facts["num_classes"], facts["classes"]
    if isinstance(classes, str):
        return f"{facts['head']}, {count} classes {classes}".strip()
    return f"{facts['head']}, {count} classes: {first_few([*map(one_line, classes)], MOST_CLASSES)}"

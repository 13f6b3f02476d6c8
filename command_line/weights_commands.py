"""The commands `featuretap save`, `convert`, `join`, `push` and `inspect`.

`inspect` does not import torch for safetensors files.
"""

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

TARGET = click.argument("target", type=parameters.PATH, help="File (.safetensors) or folder to write.")
LAYOUT = click.option(
    "--layout",
    shell_complete=completion.layouts,
    default="featuretap",
    help="Layout (tensor names) to write: featuretap, torchvision, timm, paddle, or a layout from a plugin.",
)
MOST_CLASSES = 5
"""Maximum number of class names to print; the others are counted."""


class HeadFile(click.ParamType[tuple[str, str]]):
    """A name for a head and the weights file of its model: "road=segmenter.safetensors"."""

    name = "NAME=FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return (name, file)."""
        if isinstance(value, tuple):
            return value
        name, _, file = value.partition("=")
        if not (name and file):
            self.fail(
                f"{value!r} does not name a head; write NAME=FILE, such as road=segmenter.safetensors", param, ctx
            )
        return name, file


@click.command("save", cls=Command, short_help="Save a model with published weights.")
@click.argument("name", shell_complete=completion.backbones, help="Name of the backbone.")
@TARGET
@parameters.weights_option()
@parameters.FEATURES_ONLY
@parameters.heads_option(f"Attach this head. {parameters.SEVERAL_HEADS}  [default: the head of the weights]")
@parameters.NUM_CLASSES
@parameters.backbone_options(
    "An option of the backbone or the head, such as width=0.5. With several heads, prefix it with the head's name: "
    "road.num_classes=2. Can be repeated."
)
@LAYOUT
def save_command(
    name: str, target: Path, weights: str | None, layout: str, options: dict[str, Any], **arguments: Any
) -> None:
    """Build the backbone NAME with published weights and save it to TARGET (a .safetensors file or a folder).

    Example: featuretap save mobilenet_v3_large large.safetensors --features-only
    """
    from featuretap.workflows.inference.modules import open_model

    with report_unwritten(target):
        model = open_model(name, weights, **arguments, **options)
        echo(f"saved: {registry.save(model, target, layout)}")


@click.command("convert", cls=Command, short_help="Convert weights to another library's layout.")
@click.argument("source", type=click.Path(), help="Weights file, folder or URL.")
@TARGET
@LAYOUT
@parameters.one_head_option("Keep only this head, with the backbone, of a SOURCE with several heads.")
def convert_command(source: str, target: Path, layout: str, head: str | None) -> None:
    """Convert the weights SOURCE to the layout of another library, and write TARGET.

    Example: featuretap convert mobilenet_v3_large-5c1a4163.pth timm-folder --layout timm
    featuretap convert several.safetensors road.safetensors --head road
    """
    with report_unwritten(target):
        if head is None:
            saved = registry.convert(source, target, layout)
        else:
            saved = registry.save(registry.select_head(registry.load(source), head), target, layout)
    echo(f"saved: {saved}")


@click.command("join", cls=Command, short_help="Join models that share a backbone into one with several heads.")
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=HeadFile(),
    metavar="NAME=FILE...",
    help="Name for a head, and the weights file of its model.",
)
@TARGET
def join_command(files: tuple[tuple[str, str], ...], target: Path) -> None:
    """Join models that share a backbone into one model with several heads, and write TARGET.

    The backbones of all FILEs must be equal bit for bit.

    Example: featuretap join objects=detector.safetensors road=segmenter.safetensors several.safetensors
    """
    names = [name for name, _ in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise click.UsageError(f"two heads are named {twice!r}; give each a different name")
    with report_unwritten(target):
        saved = registry.save(registry.join(dict(files)), target)
    echo(f"saved: {saved}")


@click.command("push", cls=Command, short_help="Publish a model on the Hugging Face Hub.")
@click.argument("file", type=click.Path(), help="Weights file, folder or URL.")
@click.argument("repository", metavar="OWNER/NAME", help="Repository; created if it does not exist.")
@LAYOUT
@click.option("--private", is_flag=True, help="Create a private repository.")
def push_command(file: str, repository: str, layout: str, private: bool) -> None:
    """Publish the model in a weights FILE as OWNER/NAME on the Hugging Face Hub.

    Log in first with `hf auth login`.

    Example: featuretap push large.safetensors OWNER/NAME --layout timm
    """
    echo(f"pushed: {registry.push(registry.load(file), repository, layout, private=private)}")


@click.command("inspect", cls=Command, short_help="Show model, layout and tensors of a weights file.")
@click.argument("file", type=click.Path(), help="Weights file, folder or URL.")
@click.option("--tensors", is_flag=True, help="Also list every tensor.")
@click.option("--finite", is_flag=True, help="Fail if the weights contain NaN or infinity.")
@parameters.JSON
def inspect_command(file: str, tensors: bool, finite: bool, as_json: bool) -> None:
    """Show the model, layout and tensors of a weights file.

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
    """Return the tensors of a file and its record, from the header if that is enough."""
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
            # A file that is identified from its tensors does not record its preprocessing.
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
    note = "" if facts["described"] or not facts["name"] else " (identified from its tensors)"
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
        # With several heads, each has its own preprocessing.
        "preprocessing": "" if facts.get("heads") else format_options(facts.get("preprocessing")),
        "tensors": f"{len(tensors)} ({counts}), {values:,} values, {facts['bytes']:,} bytes",
        "SHA-256": facts["sha256"],
    }
    print_fields(fields, width=13)
    if facts.get("heads"):
        rows = [
            (name, _format_head(head), ", ".join(head["reads"]), format_options(head["options"]))
            for name, head in facts["heads"].items()
        ]
        print_table(("name", "head", "reads", "options"), rows)


def _head_options(head: Description, backbone: Description) -> dict[str, Any]:
    return {name: value for name, value in head.options.items() if name not in backbone.options}


def _natural(name: str) -> list[str]:
    # Sort "stages.C4.10" after "stages.C4.9".
    return [part.zfill(9) if part.isdigit() else part for part in name.split(".")]


def _format_head(facts: Mapping[str, Any]) -> str:
    if facts.get("num_classes") is None:
        return facts.get("head") or ""
    count, classes = facts["num_classes"], facts["classes"]
    if isinstance(classes, str):
        return f"{facts['head']}, {count} classes {classes}".strip()
    return f"{facts['head']}, {count} classes: {first_few([*map(one_line, classes)], MOST_CLASSES)}"

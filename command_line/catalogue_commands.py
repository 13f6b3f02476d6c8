"""`featuretap list` and `featuretap show`."""

from __future__ import annotations

from typing import Any

import click

from featuretap import registry
from featuretap.command_line import completion, parameters
from featuretap.command_line.commands import Command
from featuretap.command_line.printing import echo, format_options, print_fields, print_json, print_table
from featuretap.registry.hookspecs import WeightsEntry
from featuretap.specs import BackboneSpec, ModelSpec, MultiHeadSpec
from featuretap.specs.addresses import LEVELS
from featuretap.specs.head import backbone_of
from featuretap.support.errors import FeaturetapError, HeadError, PluginError, UnknownHeadError
from featuretap.support.text import format_count

LISTED_SIZE = (224, 224)


@click.command("list", cls=Command, short_help="List backbones, heads or weights.")
@click.argument(
    "pattern",
    default="*",
    shell_complete=completion.backbones_or_heads,
    help="Name or glob pattern.  [default: *]",
)
@click.option("--heads", is_flag=True, help="List heads instead of backbones.")
@click.option("--weights", is_flag=True, help="List published weights instead of backbones, with their licenses.")
def list_command(pattern: str, heads: bool, weights: bool) -> None:
    """List the backbones whose names match PATTERN; with --heads or --weights, list heads or published weights.

    Example: featuretap list 'mobilenet_v3*'
    featuretap list --weights 'mobilenet_v2.*'
    """
    if heads and weights:
        raise click.UsageError("--heads and --weights exclude each other; use one of them")
    listing = registry.list_heads if heads else registry.list_weights if weights else registry.list_backbones
    names = listing(pattern)
    if not names:
        kind, flag = ("head", " --heads") if heads else ("weights", " --weights") if weights else ("backbone", "")
        raise click.UsageError(f"no {kind} {'match' if weights else 'matches'} {pattern!r}; see featuretap list{flag}")
    if weights:
        entries = {entry.name: entry for entry in registry.default.published_weights}
        print_table(("name", "head", ">accuracy", "license", ">MB"), (_weights_row(entries[name]) for name in names))
        echo("Accuracy in percent, as published: top-1 of classifiers, box AP of detectors, mean IoU of segmenters.")
    elif heads:
        print_table(("name", "reads", ">classes", "description"), map(_head_row, names))
        echo("The number of classes is the default. To count a backbone with a head: featuretap show NAME --head HEAD")
    else:
        titles = ("name", ">parameters", ">MACs", "channels C1–C5", "weights")
        print_table(titles, map(_backbone_row, names))
        if "/" in pattern:
            echo("To count one of these backbones, which builds it on the meta device: featuretap show NAME")
        else:
            echo(
                "Parameters and multiply-adds (MACs) include the 1000-class classifier; MACs are for one 224×224 image."
            )
    for problem in registry.default.problems:
        echo(problem, err=True)
    if registry.default.problems:
        echo("see featuretap plugins", err=True)


def _weights_row(entry: WeightsEntry) -> tuple[str, ...]:
    accuracy = "–" if entry.accuracy is None else f"{entry.accuracy:.2f}"
    size = f"{entry.megabytes:.1f}" if entry.megabytes else "–"
    return entry.name, entry.head, accuracy, entry.license or "unknown", size


def _head_row(name: str) -> tuple[str, ...]:
    try:
        head = registry.default.head(name)
    except UnknownHeadError:
        # Two plugins provide the name; the list of problems below reports it.
        return name, "–", "–", ""
    reads = ", ".join(choice if isinstance(choice, str) else " or ".join(choice) for choice in head.reads)
    return name, reads, "–" if head.num_classes is None else str(head.num_classes), head.description


def _backbone_row(name: str) -> tuple[str, ...]:
    if registry.default.needs_torch(name):
        # Counting a backbone of a namespace would build it.
        return name, "–", "–", "–", ""
    try:
        spec = _with_classifier(name, {})
    except FeaturetapError as error:
        # One backbone with a broken spec must not hide the others.
        if str(error) not in registry.default.problems:
            echo(str(error), err=True)
        return name, "–", "–", "–", ""
    channels = (str(spec.taps[level].channels) if level in spec.taps else "–" for level in LEVELS)
    tags = (entry.tag for entry in registry.default.weights_of(name) if entry.head == "classification")
    return name, *map(format_count, _cost(spec, LISTED_SIZE).values()), " / ".join(channels), ", ".join(tags)


def _with_classifier(name: str, options: dict[str, Any]) -> BackboneSpec | ModelSpec:
    try:
        return registry.spec(name, **options)
    except HeadError:
        # A backbone that does not reach C5 has no classifier by default.
        return registry.spec(name, features_only=True, **options)


def _cost(
    spec: BackboneSpec | ModelSpec | MultiHeadSpec, size: tuple[int, int], *, build: bool = False
) -> dict[str, int | None]:
    """Return parameters and multiply-adds; a backbone that is not a table of rows is counted only with `build`."""
    cost: dict[str, int | None] = {"parameters": None, "macs": None}
    if backbone_of(spec).stages or build:
        cost["parameters"] = spec.parameters
        try:
            cost["macs"] = spec.macs(*size)
        except PluginError as error:
            # Some networks accept a single image size.
            echo(str(error), err=True)
    return cost


@click.command("show", cls=Command, short_help="Show taps, parameters and multiply-adds of a backbone.")
@click.argument("name", shell_complete=completion.backbones, help="Name of the backbone.")
@click.option("--width", type=float, help="Width multiplier.")
@click.option("--reduced-tail", is_flag=True, default=None, help="Halve the channels after C4.")
@click.option("--output-stride", type=int, help="Maximum stride: 32, 16 or 8.")
@click.option("--in-channels", type=int, help="Number of image channels.")
@parameters.backbone_options(
    "Any other option of the backbone or head, such as dilate_entry=true. With several heads, prefix it with the "
    "head's name: road.num_classes=2. Can be repeated."
)
@parameters.heads_option(f"Attach this head. {parameters.SEVERAL_HEADS}")
@parameters.NUM_CLASSES
@click.option("--taps", type=parameters.TAPS, help="Comma-separated taps for the head to read.")
@click.option("--size", type=parameters.SIZE, default="224x224", help="Image size, height x width.")
@parameters.JSON
def show_command(
    name: str,
    options: dict[str, Any],
    head: str | dict[str, str] | None,
    num_classes: int | None,
    taps: tuple[str, ...] | None,
    size: tuple[int, int],
    as_json: bool,
    **named: Any,
) -> None:
    """Show every tap of the backbone NAME, and count its parameters and multiply-adds with and without a head.

    Example: featuretap show mobilenet_v3_large --head ssdlite --reduced-tail --size 320x320
    featuretap show mobilenet_v3_large --head objects=ssdlite --head road=lraspp --option road.num_classes=2
    """
    options = {option: value for option, value in named.items() if value is not None} | options
    if head is None and (taps or num_classes is not None):
        raise click.UsageError("--taps and --num-classes need a head; add --head")
    arguments = {"head": head, "taps": taps, "num_classes": num_classes} if head else {"features_only": True}
    spec = registry.spec(name, **arguments, **options)
    (print_json if as_json else _print_facts)(_facts(name, spec, options, size))


def _facts(
    name: str, spec: BackboneSpec | ModelSpec | MultiHeadSpec, options: dict[str, Any], size: tuple[int, int]
) -> dict[str, Any]:
    if isinstance(spec, ModelSpec | MultiHeadSpec):
        # Show all taps, not only those that the heads read.
        backbone = spec.backbone.with_taps(spec.backbone.levels or tuple(spec.backbone.addresses))
        if isinstance(spec, ModelSpec):
            with_head: dict[str, Any] = {"head": {**_head_facts(spec, size), **_cost(spec, size, build=True)}}
        else:
            heads = {label: {**_head_facts(head, size), **_head_cost(head, size)} for label, head in spec.heads.items()}
            with_head = {"heads": heads, "model": _cost(spec, size, build=True)}
    else:
        backbone, model = spec, _with_classifier(name, options)
        none = {"parameters": None, "macs": None}
        with_head = {"classifier": _cost(model, size, build=True) if isinstance(model, ModelSpec) else none}
    taps = {}
    for address, path in backbone.addresses.items():
        up_to_tap = backbone.with_taps((address,))
        (tap,), (shape,) = up_to_tap.taps.values(), up_to_tap.tap_shapes(*size).values()
        taps[address] = {
            "channels": tap.channels,
            "stride": tap.stride,
            "shape": list(shape),
            "path": path,
            **_cost(up_to_tap, size),
        }
    return {
        "name": backbone.name,
        "description": backbone.description,
        "aliases": list(backbone.aliases),
        "plugin": registry.default.provider(name),
        "options": options,
        "size": list(size),
        "taps": taps,
        "backbone": _cost(spec.backbone if isinstance(spec, MultiHeadSpec) else backbone, size, build=True),
        **with_head,
        "activation_memory": backbone_of(spec).activation_memory(*size) if backbone_of(spec).stages else None,
        "weights": [*backbone.tags, *(entry.tag for entry in registry.default.weights_of(name))],
        "licenses": {entry.tag: entry.license for entry in registry.default.weights_of(name)},
    }


def _head_facts(spec: ModelSpec, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "name": spec.head.name,
        "description": spec.head.description,
        "reads": list(spec.backbone.taps),
        "num_classes": spec.num_classes,
        "options": dict(spec.head_options),
        "outputs": {output: list(shape) for output, shape in spec.outputs(*size).items()},
    }


def _head_cost(spec: ModelSpec, size: tuple[int, int]) -> dict[str, int | None]:
    """Return parameters and multiply-adds of a head without its backbone."""
    return {"parameters": spec.head_parameters, "macs": spec.head_macs(*size)}


def _print_facts(facts: dict[str, Any]) -> None:
    echo(f"{facts['name']}: {facts['description']}")
    print_fields(
        {
            "aliases": ", ".join(facts["aliases"]),
            "options": format_options(facts["options"]),
            "plugin": facts["plugin"],
            "weights": ", ".join(facts["weights"]) or "none in the catalogue",
            "licenses": _format_licenses(facts["licenses"]),
        }
    )
    titles = ("tap", ">channels", ">stride", ">map", ">cumulative parameters", ">cumulative MACs")
    rows = [
        (address, str(tap["channels"]), str(tap["stride"]), "{1}×{2}".format(*tap["shape"]), *_format_cost(tap))
        for address, tap in facts["taps"].items()
    ]
    print_table(titles, rows)
    head, heads = facts.get("head"), facts.get("heads", {})
    costs = {"backbone": facts["backbone"]}
    if heads:
        costs |= {**heads, "total": facts["model"]}
    else:
        costs |= {f"with {head['name']}": head} if head else {"classifier": facts["classifier"]}
    width = max(12, *map(len, costs))
    image = "{}×{}".format(*facts["size"])
    text = "{} parameters, {} multiply-adds at " + image
    print_fields({label: text.format(*_format_cost(cost)) for label, cost in costs.items()}, width)
    if facts["activation_memory"] is not None:
        peak = f"{facts['activation_memory'] / 1e6:.2f} MB at peak in the backbone, for one float32 image at {image}"
        print_fields({"activations": peak}, width)
    if head:
        options = format_options(head["options"]) or "none"
        print_fields({"head reads": ", ".join(head["reads"]), "head options": options}, width)
    for label, one in heads.items():
        options = format_options(one["options"]) or "none"
        echo(f"{label}: {one['description']}")
        print_fields({"reads": ", ".join(one["reads"]), "options": options}, width)
    outputs = head["outputs"] if head else {}
    for label, one in heads.items():
        outputs |= {f"{label}.{output}": shape for output, shape in one["outputs"].items()}
    if outputs:
        print_table(("output", ">shape"), [(output, "×".join(map(str, shape))) for output, shape in outputs.items()])


def _format_licenses(licenses: dict[str, str]) -> str:
    """Return each license with the tags of the weights that are published under it."""
    stated = dict.fromkeys(one or "unknown" for one in licenses.values())
    tags = {name: [tag for tag, one in licenses.items() if (one or "unknown") == name] for name in stated}
    return "; ".join(f"{name} ({', '.join(tags[name])})" for name in stated)


def _format_cost(cost: dict[str, Any]) -> tuple[str, str]:
    parameters = cost["parameters"]
    return "–" if parameters is None else f"{parameters:,}", format_count(cost["macs"])

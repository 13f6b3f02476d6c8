"""`featuretap list` and `featuretap show`. No torch."""

from __future__ import annotations

import json
from typing import Any

import click

from featuretap import registry
from featuretap.catalogue.request import backbone_of
from featuretap.command_line import completing
from featuretap.command_line.commands import Command
from featuretap.command_line.parameters import Addresses, OptionPair, Size
from featuretap.command_line.printing import print_table, print_text
from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.addresses import LEVELS
from featuretap.support.errors import FeaturetapError, HeadError, PluginError, UnknownHeadError
from featuretap.support.text import format_count

__all__ = ["list_command", "show_command"]

LISTED_SIZE = (224, 224)


@click.command("list", cls=Command, short_help="List backbones, or heads.")
@click.argument(
    "pattern", default="*", shell_complete=completing.listed, help="Part of names, with * for the rest.  [default: *]"
)
@click.option("--heads", is_flag=True, help="List heads in place of backbones.")
def list_command(pattern: str, heads: bool) -> None:
    """List the backbones, or the heads, whose names match PATTERN.

    Example: featuretap list 'mobilenet_v3*'
    """
    if heads:
        _list_heads(pattern)
        return
    names = registry.list_backbones(pattern)
    if not names:
        raise click.UsageError(f"no backbone matches {pattern!r}; featuretap list names them all")
    columns = [("name", "left"), ("parameters", "right"), ("MACs", "right"), ("channels C1–C5", "left")]
    print_table([*columns, ("weights", "left")], map(_listed, names))
    if "/" in pattern:
        print_text("featuretap show NAME builds one of these without memory, to say what it is.")
    else:
        print_text(
            "Parameters and multiply-adds (MACs) with the 1000-class classifier, for one image of 224×224 pixels."
        )
    _name_problems()


def _list_heads(pattern: str) -> None:
    names = registry.list_heads(pattern)
    if not names:
        raise click.UsageError(f"no head matches {pattern!r}; featuretap list --heads names them all")
    columns = [("name", "left"), ("reads", "left"), ("classes", "right"), ("what it is", "left")]
    rows = []
    for name in names:
        try:
            head = registry.default.head(name)
        except UnknownHeadError:
            # Two plugins have it, which is said below.
            rows.append((name, "–", "–", ""))
            continue
        reads = ", ".join(choice if isinstance(choice, str) else " or ".join(choice) for choice in head.reads)
        classes = "–" if head.num_classes is None else str(head.num_classes)
        rows.append((name, reads, classes, head.description))
    print_table(columns, rows)
    print_text("Classes are those of the default; featuretap show NAME --head HEAD counts a backbone with a head.")
    _name_problems()


def _name_problems() -> None:
    problems = registry.default.problems
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        click.echo("featuretap plugins says more.", err=True)


def _listed(name: str) -> tuple[str, ...]:
    if registry.default.needs_torch(name):
        # To describe what is in an open namespace, or rests on it, it has to be built.
        return name, "–", "–", "–", ""
    try:
        spec = _whole(name, {})
    except FeaturetapError as error:
        # One backbone that cannot be described must not hide the others; what is contested is said anyway.
        if str(error) not in registry.default.problems:
            click.echo(str(error), err=True)
        return name, "–", "–", "–", ""
    taps = spec.taps
    channels = (str(taps[level].channels) if level in taps else "–" for level in LEVELS)
    entries = registry.default.weights_of(name)
    tags = ", ".join(entry.tag for entry in entries if entry.head == "classification")
    return name, *map(format_count, _counts(spec, LISTED_SIZE)), " / ".join(channels), tags


def _whole(name: str, options: dict[str, Any]) -> BackboneSpec | ModelSpec:
    try:
        return registry.spec(name, **options)
    except HeadError:
        # A backbone that does not reach C5 has no classifier by default, and is described without one.
        return registry.spec(name, features_only=True, **options)


def _counts(
    spec: BackboneSpec | ModelSpec, size: tuple[int, int], *, built: bool = False
) -> tuple[int | None, int | None]:
    """Return parameters and multiply-adds; what is no table has to be built for them, and is counted if it may be."""
    if not backbone_of(spec).stages and not built:
        return None, None
    parameters = spec.parameters
    try:
        return parameters, spec.macs(*size)
    except PluginError as error:
        # Networks for one size of images cannot be run at another.
        click.echo(str(error), err=True)
        return parameters, None


@click.command("show", cls=Command, short_help="Show the taps of a backbone, and what it costs.")
@click.argument("name", shell_complete=completing.backbones, help="The backbone.")
@click.option("--width", type=float, help="Width multiplier.")
@click.option("--reduced-tail", is_flag=True, default=None, help="Halve the channels behind C4.")
@click.option("--output-stride", type=int, help="32, 16 or 8.")
@click.option("--in-channels", type=int, help="Channels of the images.")
@click.option("--option", "pairs", type=OptionPair(), multiple=True, help="Any other option; can be repeated.")
@click.option(
    "--head",
    shell_complete=completing.heads,
    help="Count the backbone with this head; featuretap list --heads names them.",
)
@click.option("--num-classes", type=int, help="Classes of the head.")
@click.option("--taps", type=Addresses(), help="Which maps the head reads, separated by commas.")
@click.option("--size", type=Size(), default="224x224", show_default=True, help="Of the images.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_command(
    name: str,
    pairs: tuple[tuple[str, Any], ...],
    head: str | None,
    num_classes: int | None,
    taps: tuple[str, ...] | None,
    size: tuple[int, int],
    as_json: bool,
    **named: Any,
) -> None:
    """Show every tap of the backbone NAME, and what it costs, alone and with a head.

    Example: featuretap show mobilenet_v3_large --head ssdlite --reduced-tail --size 320x320
    """
    options = {option: value for option, value in named.items() if value is not None} | dict(pairs)
    if head is None:
        if taps or num_classes is not None:
            raise click.UsageError("--taps and --num-classes are of a head; name it with --head")
        facts = _facts(name, registry.spec(name, features_only=True, **options), options, size)
    else:
        model = registry.spec(name, head=head, taps=taps, num_classes=num_classes, **options)
        assert isinstance(model, ModelSpec)
        facts = _facts(name, model, options, size)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print_facts(facts)


def _facts(
    name: str, described: BackboneSpec | ModelSpec, options: dict[str, Any], size: tuple[int, int]
) -> dict[str, Any]:
    spec = described
    if isinstance(described, ModelSpec):
        spec = described.backbone.with_taps(described.backbone.levels or tuple(described.backbone.addresses))
    assert isinstance(spec, BackboneSpec)
    taps = {}
    for address in spec.addresses:
        alone = spec.with_taps((address,))
        (tap,), (shape,) = alone.taps.values(), alone.tap_shapes(*size).values()
        parameters, macs = _counts(alone, size)
        taps[address] = {
            "channels": tap.channels,
            "stride": tap.stride,
            "shape": list(shape),
            "path": spec.addresses[address],
            "parameters": parameters,
            "macs": macs,
        }
    if isinstance(described, ModelSpec):
        with_head = {"head": _with_head(described, size)}
    else:
        whole = _whole(name, options)
        classifier = _counts(whole, size, built=True) if isinstance(whole, ModelSpec) else (None, None)
        with_head = {"classifier": dict(zip(("parameters", "macs"), classifier, strict=True))}
    return {
        "name": spec.name,
        "description": spec.description,
        "aliases": list(spec.aliases),
        "plugin": registry.default.provider(name),
        "options": options,
        "size": list(size),
        "taps": taps,
        "backbone": dict(zip(("parameters", "macs"), _counts(spec, size, built=True), strict=True)),
        **with_head,
        "weights": [*spec.tags, *(entry.tag for entry in registry.default.weights_of(name))],
    }


def _with_head(model: ModelSpec, size: tuple[int, int]) -> dict[str, Any]:
    """Return what is to be said of a whole model with a head."""
    return {
        "name": model.head.name,
        "description": model.head.description,
        "reads": list(model.backbone.taps),
        "num_classes": model.num_classes,
        "options": dict(model.head_options),
        **dict(zip(("parameters", "macs"), _counts(model, size, built=True), strict=True)),
        "outputs": {name: list(shape) for name, shape in model.outputs(*size).items()},
    }


def _print_facts(facts: dict[str, Any]) -> None:
    print_text(f"{facts['name']}: {facts['description']}")
    about = {
        "also called": ", ".join(facts["aliases"]),
        "options": ", ".join(f"{name}={value}" for name, value in facts["options"].items()),
        "from plugin": facts["plugin"],
        "weights": ", ".join(facts["weights"]) or "none in the catalogue",
    }
    for label, text in about.items():
        if text:
            print_text(f"  {label:<12} {text}")
    columns = [("tap", "left"), ("channels", "right"), ("stride", "right"), ("map", "right")]
    rows = [
        (address, str(tap["channels"]), str(tap["stride"]), "{1}×{2}".format(*tap["shape"]), *_cost(tap))
        for address, tap in facts["taps"].items()
    ]
    print_table([*columns, ("parameters up to it", "right"), ("MACs up to it", "right")], rows)
    height, width = facts["size"]
    head = facts.get("head")
    whole = {f"with {head['name']}": head} if head else {"classifier": facts["classifier"]}
    label_width = max(12, *map(len, whole))
    for label, counted in {"backbone": facts["backbone"], **whole}.items():
        parameters, macs = _cost(counted)
        print_text(
            f"  {label:<{label_width}} {parameters} parameters, {macs} multiply-adds for an image of {height}×{width}"
        )
    if head:
        given = ", ".join(f"{name}={value}" for name, value in head["options"].items())
        for label, text in (("it reads", ", ".join(head["reads"])), ("its options", given or "none")):
            print_text(f"  {label:<{label_width}} {text}")
        outputs = ((name, "×".join(map(str, shape))) for name, shape in head["outputs"].items())
        print_table([("output", "left"), ("shape", "right")], outputs)


def _cost(counted: dict[str, Any]) -> tuple[str, str]:
    exact = counted["parameters"]
    return "–" if exact is None else f"{exact:,}", format_count(counted["macs"])

"""`featuretap list` and `featuretap show`. No torch."""

from __future__ import annotations

import json
from typing import Any

import click

from featuretap import registry
from featuretap.registry.addresses import LEVELS
from featuretap.registry.command_line.parameters import OptionPair, Size
from featuretap.registry.command_line.printing import print_table, print_text, short
from featuretap.registry.errors import FeaturetapError, HeadError
from featuretap.registry.specs import BackboneSpec, ModelSpec

__all__ = ["list_command", "show_command"]

LISTED_SIZE = (224, 224)


@click.command("list")
@click.argument("pattern", default="*")
def list_command(pattern: str) -> None:
    """List the backbones whose names match PATTERN.

    Example: featuretap list 'mobilenet_v3*'
    """
    names = registry.list_backbones(pattern)
    if not names:
        raise click.UsageError(f"no backbone matches {pattern!r}; featuretap list names them all")
    columns = [("name", "left"), ("parameters", "right"), ("MACs", "right"), ("channels C1–C5", "left")]
    print_table([*columns, ("weights", "left")], map(_listed, names))
    print_text("Parameters and multiply-adds (MACs) with the 1000-class classifier, for one image of 224×224 pixels.")
    for plugin in registry.default.plugins:
        if plugin.status == "failed":
            click.echo(plugin.failure, err=True)


def _listed(name: str) -> tuple[str, ...]:
    try:
        spec = _whole(name, {})
    except FeaturetapError as error:
        # One backbone that cannot be described must not hide the others.
        click.echo(str(error), err=True)
        return name, "–", "–", "–", ""
    taps = spec.taps
    channels = (str(taps[level].channels) if level in taps else "–" for level in LEVELS)
    tags = ", ".join(entry.tag for entry in registry.default.weights_of(name))
    return name, *map(short, _counts(spec, LISTED_SIZE)), " / ".join(channels), tags


def _whole(name: str, options: dict[str, Any]) -> BackboneSpec | ModelSpec:
    try:
        return registry.spec(name, **options)
    except HeadError:
        # A backbone that does not reach C5 has no classifier by default, and is described without one.
        return registry.spec(name, features_only=True, **options)


def _counts(spec: BackboneSpec | ModelSpec, size: tuple[int, int]) -> tuple[int | None, int | None]:
    backbone = spec.backbone if isinstance(spec, ModelSpec) else spec
    if not backbone.stages:
        # A backbone that is no table can be counted only when it is built.
        return None, None
    return spec.parameters, spec.macs(*size)


@click.command("show")
@click.argument("name")
@click.option("--width", type=float, help="Width multiplier.")
@click.option("--reduced-tail", is_flag=True, default=None, help="Halve the channels behind C4.")
@click.option("--output-stride", type=int, help="32, 16 or 8.")
@click.option("--in-channels", type=int, help="Channels of the images.")
@click.option("--option", "pairs", type=OptionPair(), multiple=True, help="Any other option; can be repeated.")
@click.option("--size", type=Size(), default="224x224", show_default=True, help="Of the images.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_command(
    name: str, pairs: tuple[tuple[str, Any], ...], size: tuple[int, int], as_json: bool, **named: Any
) -> None:
    """Show every tap of the backbone NAME, and what it costs.

    Example: featuretap show mobilenet_v3_large --reduced-tail --size 320x256
    """
    options = {option: value for option, value in named.items() if value is not None} | dict(pairs)
    spec = registry.spec(name, features_only=True, **options)
    assert isinstance(spec, BackboneSpec)
    facts = _facts(name, spec, options, size)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print_facts(facts)


def _facts(name: str, spec: BackboneSpec, options: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
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
    whole = _whole(name, options)
    classifier = _counts(whole, size) if isinstance(whole, ModelSpec) else (None, None)
    return {
        "name": spec.name,
        "description": spec.description,
        "aliases": list(spec.aliases),
        "plugin": registry.default.provider(name),
        "options": options,
        "size": list(size),
        "taps": taps,
        "backbone": dict(zip(("parameters", "macs"), _counts(spec, size), strict=True)),
        "classifier": dict(zip(("parameters", "macs"), classifier, strict=True)),
        "weights": [entry.tag for entry in registry.default.weights_of(name)],
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
    for label in ("backbone", "classifier"):
        parameters, macs = _cost(facts[label])
        print_text(f"  {label:<12} {parameters} parameters, {macs} multiply-adds for an image of {height}×{width}")


def _cost(counted: dict[str, Any]) -> tuple[str, str]:
    exact = counted["parameters"]
    return "–" if exact is None else f"{exact:,}", short(counted["macs"])

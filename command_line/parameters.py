"""Arguments of a kind of their own: sizes and options. No torch."""

from __future__ import annotations

import tomllib
from typing import Any

import click
from click.shell_completion import CompletionItem

from featuretap.command_line import completing
from featuretap.weights.metadata import ARGUMENTS

__all__ = ["Addresses", "OptionPair", "Size"]


class Size(click.ParamType[tuple[int, int]]):
    """Height and width in pixels: "320x256", or "224" for both."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return (height, width)."""
        if isinstance(value, tuple):
            return value
        parts = value.lower().split("x")
        if len(parts) > 2 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is no size; write height x width in pixels, such as 320x256", param, ctx)
        return int(parts[0]), int(parts[-1])


class Addresses(click.ParamType[tuple[str, ...]]):
    """Tap addresses, separated by commas: "C3.first,C5"."""

    name = "TAPS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the addresses."""
        if isinstance(value, tuple):
            return value
        addresses = tuple(part.strip() for part in value.split(",") if part.strip())
        if not addresses:
            self.fail(f"{value!r} names no taps; write them with commas between, such as C3,C4,C5", param, ctx)
        return addresses

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Complete the last address to one of the backbone's."""
        return completing.comma_separated(completing.taps)(ctx, param, incomplete)


class OptionPair(click.ParamType[tuple[str, Any]]):
    """An option of a backbone with its value as TOML writes it; a bare word is a string."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Return (name, value)."""
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not (name.isidentifier() and equals and text):
            self.fail(f"{value!r} is no option; write NAME=VALUE, such as width=0.5", param, ctx)
        if name in ARGUMENTS:
            self.fail(
                f"{name!r} is no option of a backbone or a head; see --help for what the command takes", param, ctx
            )
        try:
            return name, tomllib.loads(f"value = {text}")["value"]
        except (tomllib.TOMLDecodeError, ValueError, RecursionError):
            return name, text

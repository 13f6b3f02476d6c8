"""Tap addresses: resolve names such as C4, C5.bottleneck or C4.expansion to submodules of a backbone.

Every address is the output of one submodule, so it means the same tensor when counting, building and exporting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featuretap.specs.blocks import Block
from featuretap.specs.rows import Conv
from featuretap.support.errors import did_you_mean

LEVELS = ("C1", "C2", "C3", "C4", "C5")

KINDS = {
    "bottleneck": "block before a final 1×1 convolution",
    "expansion": "1×1 expansion at its resolution in the first block of the next level",
    "first": "block that enters the level",
    "depthwise": "depthwise layer in the level's last block",
}


def find_addresses(blocks: Sequence[Block]) -> dict[str, str]:
    """Return a mapping from every tap address of `blocks` to the path of the submodule whose output it is."""
    stages: dict[str, list[Block]] = {}
    for block in blocks:
        stages.setdefault(block.level, []).append(block)
    levels = list(stages)
    addresses: dict[str, str] = {}
    for level, leaving in zip(levels, [*levels[1:], None], strict=True):
        last = _last_before_final_convolution(stages[level])
        found = {
            level: stages[level][-1].path,
            f"{level}.bottleneck": last.path,
            f"{level}.expansion": _expansion(stages[leaving][0]) if leaving else None,
            f"{level}.first": stages[level][0].path,
            f"{level}.depthwise": _named(last, "depthwise"),
        }
        addresses.update((address, path) for address, path in found.items() if path is not None)
    return addresses


def _last_before_final_convolution(stage: Sequence[Block]) -> Block:
    for block in reversed(stage):
        if not (isinstance(block.row, Conv) and block.row.kernel == 1):
            return block
    return stage[-1]


def _named(block: Block, name: str) -> str | None:
    return next((path for path, layer in block.layer_paths() if layer.name == name and block.nested), None)


def _expansion(block: Block) -> str | None:
    # The output of an expansion after the strided layer already belongs to the next level.
    for path, layer in block.layer_paths():
        if layer.strided:
            return None
        if layer.name == "expand":
            return path
    return None


def describe_unknown_tap(name: str, address: object, available: Mapping[str, str]) -> str:
    """Return an error message for a tap address that a backbone does not have.

    Args:
        name: name of the backbone.
        address: the unknown address.
        available: the addresses of the backbone, mapped to submodule paths.

    Returns:
        A message with the nearest address, or with all addresses if none is near.
    """
    level, _, kind = str(address).partition(".")
    levels = [known.partition(".")[0] for known in available if known.endswith(f".{kind}")]
    if level in available and kind in KINDS:
        elsewhere = f"available at {', '.join(levels)}" if levels else "not available at any level"
        return f"{name!r} has no tap {address!r}: {level} has no {KINDS[kind]}; {elsewhere}"
    # "c4" is too different from "C4" for the search by similarity.
    hint = did_you_mean(str(address).replace("c", "C", 1), available) or "."
    return f"{name!r} has no tap {address!r}{hint} Available taps: {', '.join(available)}"

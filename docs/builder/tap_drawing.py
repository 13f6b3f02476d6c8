"""A drawing of where the taps of a backbone lie: every block with its layers, a level a band.

`python -m docs.builder.tap_drawing` writes the drawings under `docs/images/` anew.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from featuretap import registry
from featuretap.specs.backbone import BackboneSpec
from featuretap.specs.blocks import Block

__all__ = ["DRAWN", "drawing", "file_of"]

DRAWN = ("mobilenet_v2", "mobilenet_v3_large")
"""The backbones that are drawn."""

KINDS = {
    "convolution": ("#94a3b8", "convolution"),
    "expand": ("#fbbf24", "expansion 1×1"),
    "depthwise": ("#60a5fa", "depthwise"),
    "squeeze_excite": ("#c084fc", "squeeze-excite"),
    "project": ("#34d399", "projection 1×1"),
}
"""Name of a layer → its colour, and what the legend calls it; a row of one layer is a convolution."""

WIDE, GAP, HIGH = 17, 12, 26
"""Width of a layer, space between blocks, height of a block, in pixels."""
LEFT, TOP, BAND, LABELS = 128, 62, 124, 56
"""Where the first block begins, where the first band does, the height of a band, and of the labels above its blocks."""
LETTER, LINE = 6.7, 14
"""Width of a letter, and height of a line of labels."""


def file_of(name: str) -> Path:
    """Return the file that holds the drawing of a backbone."""
    return Path(__file__).parents[1] / "images" / f"taps-{name}.svg"


def drawing(name: str) -> str:
    """Return the drawing of a backbone's blocks and tap addresses as SVG."""
    spec = registry.spec(name, features_only=True)
    assert isinstance(spec, BackboneSpec)
    places = {path: (x, band) for x, band, path in _ends(spec)}
    parts = [part for band, level in enumerate(spec.levels) for part in _band(spec, level, band)]
    parts += _pins(spec, places)
    width = max(x for x, _ in places.values()) + 120
    height = TOP + BAND * len(spec.levels)
    title = f"{name}: where its taps lie"
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{title}" font-family="system-ui, sans-serif" font-size="12">',
            f"<title>{title}</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
            f'<text x="16" y="27" font-size="15" font-weight="600" fill="#0f172a">{escape(name)}</text>',
            *_legend(spec, 16, 40),
            *parts,
            "</svg>\n",
        )
    )


def _blocks(spec: BackboneSpec, level: str) -> list[Block]:
    return [block for block in spec.all_blocks if block.level == level]


def _ends(spec: BackboneSpec) -> list[tuple[int, int, str]]:
    """Return (x of its right edge, band, path) of every block and layer."""
    ends = []
    for band, level in enumerate(spec.levels):
        x = LEFT
        for block in _blocks(spec, level):
            for path, _ in block.layer_paths():
                x += WIDE
                ends.append((x, band, path))
            ends.append((x, band, block.path))
            x += GAP
    return ends


def _kind(block: Block, name: str) -> str:
    return name if block.nested and name in KINDS else "convolution"


def _legend(spec: BackboneSpec, x: int, y: int) -> list[str]:
    there = {_kind(block, layer.name) for block in spec.all_blocks for layer in block.layers}
    parts = []
    for kind, (colour, word) in KINDS.items():
        if kind in there:
            parts.append(f'<rect x="{x}" y="{y}" width="11" height="11" rx="2" fill="{colour}"/>')
            parts.append(f'<text x="{x + 16}" y="{y + 10}" fill="#334155">{word}</text>')
            x += 34 + 7 * len(word)
    return parts


def _band(spec: BackboneSpec, level: str, band: int) -> list[str]:
    y = TOP + BAND * band
    stride = spec.taps[level].stride
    parts = [
        f'<line x1="16" y1="{y + 4}" x2="100%" y2="{y + 4}" stroke="#e2e8f0"/>',
        f'<text x="16" y="{y + LABELS + 18}" font-size="16" font-weight="600" fill="#0f172a">{level}</text>',
        f'<text x="44" y="{y + LABELS + 18}" fill="#475569">stride {stride}</text>',
    ]
    x = LEFT
    for block in _blocks(spec, level):
        start = x
        for layer in block.layers:
            colour, _ = KINDS[_kind(block, layer.name)]
            parts.append(f'<rect x="{x}" y="{y + LABELS}" width="{WIDE}" height="{HIGH}" fill="{colour}"/>')
            x += WIDE
        place = f'x="{start}" y="{y + LABELS}" width="{x - start}" height="{HIGH}"'
        parts.append(f'<rect {place} rx="2" fill="none" stroke="#0f172a"/>')
        x += GAP
    return parts


def _pins(spec: BackboneSpec, places: dict[str, tuple[int, int]]) -> list[str]:
    """Mark where each address is read: levels below their band, the other addresses above it."""
    parts = []
    levels = {spec.addresses[level]: level for level in spec.levels}
    above: dict[int, list[tuple[int, str]]] = {}
    for address, path in spec.addresses.items():
        x, band = places[path]
        text = f"{address}: {spec.with_taps([address]).taps[address].channels}"
        if levels.get(path) == address:
            y = TOP + BAND * band + LABELS + HIGH
            parts.append(_pin(x, y, y + 12, "#be123c"))
            parts.append(_label(x, y + 26, text, "#be123c", 600, "end"))
        elif path not in levels:
            above.setdefault(band, []).append((x, text))
    for band, labels in above.items():
        y = TOP + BAND * band + LABELS
        for x, text, tier in _tiers(labels):
            parts.append(_pin(x, y, y - 6 - LINE * tier, "#0f172a"))
            parts.append(_label(x + 3, y - 4 - LINE * tier, text, "#0f172a", 400, "start"))
    return parts


def _tiers(labels: list[tuple[int, str]]) -> list[tuple[int, str, int]]:
    """Put labels that begin at their pins on lines, so that none crosses another or another's pin."""
    placed: list[tuple[int, str, int]] = []
    for x, text in sorted(labels, reverse=True):
        end = x + LETTER * len(text) + 6
        placed.append((x, text, max((tier + 1 for other, _, tier in placed if other < end), default=0)))
    return placed


def _pin(x: int, start: int, end: int, colour: str) -> str:
    return f'<line x1="{x}" y1="{start}" x2="{x}" y2="{end}" stroke="{colour}" stroke-width="1.5"/>'


def _label(x: int, y: int, text: str, colour: str, weight: int, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}" font-weight="{weight}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    for drawn in DRAWN:
        file_of(drawn).write_text(drawing(drawn))

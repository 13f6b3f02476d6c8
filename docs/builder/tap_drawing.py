"""Drawings of the tap addresses of a backbone: every block with its layers, one row per level.

`python -m docs.builder.tap_drawing` writes the drawings to `docs/images/`.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from featuretap import registry
from featuretap.specs.backbone import BackboneSpec
from featuretap.specs.blocks import Block

__all__ = ["DRAWN", "draw_taps", "drawing_path"]

DRAWN = ("mobilenet_v2", "mobilenet_v3_large")
"""Backbones to draw."""

KINDS = {
    "convolution": ("#94a3b8", "convolution"),
    "expand": ("#fbbf24", "expansion 1×1"),
    "depthwise": ("#60a5fa", "depthwise"),
    "squeeze_excite": ("#c084fc", "squeeze-excite"),
    "project": ("#34d399", "projection 1×1"),
}
"""Layer name → color and legend label; a row with a single layer is a convolution."""

WIDE, GAP, HIGH = 17, 12, 26
"""Width of a layer, space between blocks and height of a block, in pixels."""
LEFT, TOP, BAND, LABELS = 128, 62, 124, 56
"""Left edge of the first block, top of the first band, height of a band, and height of the labels above its blocks."""
LETTER, LINE = 6.7, 14
"""Width of a letter and height of a line of labels, in pixels."""


def drawing_path(name: str) -> Path:
    """Return the path of the drawing of a backbone."""
    return Path(__file__).parents[1] / "images" / f"taps-{name}.svg"


def draw_taps(name: str) -> str:
    """Return the drawing of a backbone's blocks and tap addresses as SVG."""
    spec = registry.spec(name, features_only=True)
    assert isinstance(spec, BackboneSpec)
    places = {path: (x, band) for x, band, path in _ends(spec)}
    parts = [part for band, level in enumerate(spec.levels) for part in _band(spec, level, band)]
    parts += _pins(spec, places)
    width = max(x for x, _ in places.values()) + 120
    height = TOP + BAND * len(spec.levels)
    title = f"Tap addresses of {name}"
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
    """Return (x of the right edge, band, path) of every block and layer."""
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
    kinds = {_kind(block, layer.name) for block in spec.all_blocks for layer in block.layers}
    parts = []
    for kind, (color, label) in KINDS.items():
        if kind in kinds:
            parts.append(f'<rect x="{x}" y="{y}" width="11" height="11" rx="2" fill="{color}"/>')
            parts.append(f'<text x="{x + 16}" y="{y + 10}" fill="#334155">{label}</text>')
            x += 34 + 7 * len(label)
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
            color, _ = KINDS[_kind(block, layer.name)]
            parts.append(f'<rect x="{x}" y="{y + LABELS}" width="{WIDE}" height="{HIGH}" fill="{color}"/>')
            x += WIDE
        place = f'x="{start}" y="{y + LABELS}" width="{x - start}" height="{HIGH}"'
        parts.append(f'<rect {place} rx="2" fill="none" stroke="#0f172a"/>')
        x += GAP
    return parts


def _pins(spec: BackboneSpec, places: dict[str, tuple[int, int]]) -> list[str]:
    """Return the markers of all addresses: levels below their band, other addresses above it."""
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
    """Place labels, which begin at their pins, on lines so that no label crosses another label or pin."""
    placed: list[tuple[int, str, int]] = []
    for x, text in sorted(labels, reverse=True):
        end = x + LETTER * len(text) + 6
        placed.append((x, text, max((tier + 1 for other, _, tier in placed if other < end), default=0)))
    return placed


def _pin(x: int, start: int, end: int, color: str) -> str:
    return f'<line x1="{x}" y1="{start}" x2="{x}" y2="{end}" stroke="{color}" stroke-width="1.5"/>'


def _label(x: int, y: int, text: str, color: str, weight: int, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" fill="{color}" font-weight="{weight}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    for drawn in DRAWN:
        drawing_path(drawn).write_text(draw_taps(drawn))

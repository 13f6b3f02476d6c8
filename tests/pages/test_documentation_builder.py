"""Generated documentation: drawings of taps, links between pages, and the command line's help."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import click
import pytest

from docs.builder import command_line, hooks, tap_drawing
from featuretap import registry
from featuretap.command_line import command

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", tap_drawing.DRAWN)
def test_the_drawings_of_taps_are_of_today_s_tables(name: str) -> None:
    """`python -m docs.builder.tap_drawing` updates the drawings."""
    assert tap_drawing.drawing_path(name).read_text() == tap_drawing.draw_taps(name)


@pytest.mark.parametrize("name", [*tap_drawing.DRAWN, "mobilenet_v1", "mobilenet_v3_small"])
def test_a_drawing_says_channels_and_stride_of_every_map(name: str) -> None:
    said = {text.text for text in ElementTree.fromstring(tap_drawing.draw_taps(name)).iter(f"{SVG}text")}
    spec = registry.spec(name, features_only=True)
    levels = set(spec.paths.values())
    for address, path in spec.addresses.items():
        # A tap that is the same map as its level is not drawn twice.
        if "." not in address or path not in levels:
            assert f"{address}: {spec.with_taps([address]).taps[address].channels}" in said
    assert {f"stride {tap.stride}" for tap in spec.taps.values()} <= said


@pytest.mark.parametrize("name", tap_drawing.DRAWN)
def test_a_drawing_has_a_box_for_each_layer(name: str) -> None:
    drawn = ElementTree.fromstring(tap_drawing.draw_taps(name))
    boxes = [box for box in drawn.iter(f"{SVG}rect") if box.get("width") == str(tap_drawing.WIDE)]
    filled = [box for box in boxes if box.get("fill") != "none"]
    assert len(filled) == sum(len(block.layers) for block in registry.spec(name, features_only=True).all_blocks)


@pytest.mark.parametrize("name", tap_drawing.DRAWN)
def test_no_label_of_a_drawing_crosses_another(name: str) -> None:
    drawn = ElementTree.fromstring(tap_drawing.draw_taps(name))
    lines: dict[str, list[tuple[float, float]]] = {}
    for text in drawn.iter(f"{SVG}text"):
        if text.get("text-anchor") == "start":
            start = float(text.attrib["x"])
            lines.setdefault(text.attrib["y"], []).append((start, start + tap_drawing.LETTER * len(text.text or "")))
    for places in lines.values():
        places.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(places))


@pytest.mark.parametrize(
    ("page", "source", "link", "expected"),
    [
        ("weights.md", "docs/weights.md", "[a](heads.md#detectors)", "[a](heads.md#detectors)"),
        ("how-to/segmenter.md", "docs/how-to/segmenter.md", "[a](../training.md)", "[a](../training.md)"),
        ("runtimes.md", "docs/runtimes.md", "[a](../benchmarks/RESULTS.md)", "[a](results.md)"),
        ("contributing.md", "CONTRIBUTING.md", "[a](docs/architecture.md)", "[a](architecture.md)"),
        ("results.md", "benchmarks/RESULTS.md", "[a](../docs/benchmarks.md)", "[a](benchmarks.md)"),
        ("examples.md", "examples/README.md", "[a](featuretap-mobilenet-v4/README.md)", "[a](example-plugin.md)"),
        ("contributing.md", "CONTRIBUTING.md", "[a](README.md#try-it)", "[a](index.md#try-it)"),
        ("index.md", "docs/index.md", "![a](images/taps.png)", "![a](images/taps.png)"),
        ("plugins.md", "docs/plugins.md", "[the kit](../registry/testing.py)", "the kit"),
        ("index.md", "docs/index.md", "[a](https://example.org/b.md)", "[a](https://example.org/b.md)"),
    ],
)
def test_links_of_documents_hold_within_the_site(page: str, source: str, link: str, expected: str) -> None:
    assert hooks.rewrite_links(link, page, source) == expected


def test_the_page_of_the_command_line_has_the_help_of_every_command() -> None:
    page = command_line.page()
    headings = re.findall(r"^## (featuretap.*)$", page, re.MULTILINE)
    commands = [f"featuretap {name}" for name in command.list_commands(click.Context(command))]
    assert headings[0] == "featuretap"
    assert [heading for heading in headings if heading.count(" ") == 1] == commands
    assert "featuretap plugins doctor" in headings
    assert page.count("Usage: featuretap") == len(headings)
    assert page.count("-h, --help") == len(headings)
    # Examples are not wrapped, so that they can be copied. All other text fits the page.
    lines = page[page.index("## featuretap") :].splitlines()
    assert max(len(line) for line in lines if not line.startswith("    featuretap")) <= 80

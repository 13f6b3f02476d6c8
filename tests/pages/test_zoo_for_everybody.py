"""Accessibility of the zoo page: keyboard, no scripts, narrow screens, dark mode, files, paper and HTML in names."""

import json
import shutil
from typing import Any

import pytest
from playwright.sync_api import Browser
from support import browser as browsers
from support.zoo_site import (
    DESK,
    EVIL,
    EVIL_LICENSE,
    PHONE,
    Opener,
    Site,
    address,
    browser,
    focused,
    identity,
    ids,
    opened,
    press,
    shown,
    site,
)

__all__ = ["address", "browser", "opened", "site"]


def test_sorting_and_filtering_need_no_mouse(opened: Opener, site: Site) -> None:
    page = opened()
    page.locator("[name=q]").focus()
    page.keyboard.type("resnet")
    press(page, *["Tab"] * 9, "Space")
    assert focused(page, "name") == "weights"
    # Tab through the button, the scatter plot, the table's container, and then the columns.
    press(page, "Tab", "Tab", "Tab", "Tab", "Tab", "Tab", "Enter")
    assert page.locator("th[data-key=parameters]").get_attribute("aria-sort") == "ascending"
    resnets = [row for row in site.rows if row.family == "resnet"]
    assert shown(page) == ids(sorted(resnets, key=lambda row: row.parameters))


@pytest.mark.parametrize("path", ["zoo.html", "made.html"])
def test_every_control_has_a_name(opened: Opener, path: str) -> None:
    page = opened(path)
    client = page.context.new_cdp_session(page)
    nodes = client.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "link", "searchbox", "spinbutton", "combobox", "checkbox", "columnheader", "rowheader", "table"}
    controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles - {"table"}]
    found = {node["role"]["value"] for node in controls}
    assert found == roles - {"table"}
    assert [node for node in controls if not node.get("name", {}).get("value", "").strip()] == []


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_the_table_is_a_table_to_a_screen_reader(opened: Opener, site: Site, size: dict[str, Any]) -> None:
    page = opened(**size)
    assert page.get_by_role("table").get_by_role("row").count() == len(site.rows) + 1
    assert page.get_by_role("table").get_by_role("rowheader").count() == len(site.rows)
    assert page.get_by_role("region", name="Table of backbones").count() == 1


# The contrast of text with its background. The browser itself blends the colors.
CONTRAST = """
selector => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = () => {
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paint = colour => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); };
  return [...document.querySelectorAll(selector)].filter(e => e.getClientRects().length).map(element => {
    const above = [];
    for (let e = element; e; e = e.parentElement) above.unshift(getComputedStyle(e).backgroundColor);
    above.forEach(paint);
    const behind = light();
    const style = getComputedStyle(element);
    paint(element instanceof SVGElement ? style.fill : style.color);
    const [high, low] = [light(), behind].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  });
}
"""
WORDS = (
    ".zoo label, .zoo-count, .zoo figcaption, .zoo-hint, .zoo-legend li, .zoo-axes text, .zoo-labels text, .zoo th, "
    ".zoo td, .zoo small, .zoo code, .zoo button, .zoo input, .zoo select, .zoo-panel strong, .zoo-panel span"
)


@pytest.mark.parametrize(("scheme", "ground"), [("light", 255), ("dark", 30)])
@pytest.mark.parametrize("size", [DESK, PHONE])
def test_everything_stands_out_in_both_schemes(opened: Opener, scheme: str, ground: int, size: dict[str, Any]) -> None:
    page = opened(color_scheme=scheme, **size)
    red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert abs(int(red) - ground) < 20
    # Focus a point to show its panel, which is tested too.
    page.locator(".zoo-point").first.focus()
    words = page.evaluate(f"({CONTRAST})({json.dumps(WORDS)})")
    marks = page.evaluate(f"({CONTRAST})('.zoo-mark')")
    assert len(words) > 500
    assert len(marks) > 30
    assert min(words) >= 4.5
    assert min(marks) >= 3


@pytest.mark.parametrize("path", ["zoo.html", "made.html"])
@pytest.mark.parametrize("script", [True, False])
def test_a_phone_need_not_scroll_sideways_or_squint(opened: Opener, path: str, script: bool) -> None:
    page = opened(path, **PHONE, is_mobile=True, has_touch=True, java_script_enabled=script)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("(b => b.scrollWidth - b.clientWidth)(document.querySelector('.zoo-box'))") == 0
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('.zoo *')].filter(e => e.getClientRects().length)"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 11
    if script:
        page.locator(".zoo-point").last.tap()
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_without_a_script_everything_is_there_and_nothing_pretends(opened: Opener, site: Site) -> None:
    page = opened(java_script_enabled=False)
    assert shown(page) == ids(site.rows)
    assert page.locator(".zoo :is(button, input, select):visible").count() == 0
    page.locator('.zoo-point[data-name="torchvision/resnet18"]').click()
    page.wait_for_url("**/zoo.html#zoo-torchvision-2f-resnet18.IMAGENET1K_V1")
    assert page.locator("tr:target th").text_content() == "torchvision/resnet18"


def test_on_paper_there_are_rows_and_no_controls(opened: Opener, site: Site) -> None:
    page = opened()
    page.emulate_media(media="print")
    assert page.locator(".zoo tbody tr:visible").count() == len(site.rows)
    assert page.locator(".zoo-scatter").is_visible()
    assert page.locator(".zoo :is(input, select, .zoo-build button):visible").count() == 0


@pytest.mark.parametrize(("wish", "seconds"), [("reduce", "0s"), ("no-preference", "0.15s")])
def test_nothing_moves_for_those_who_wish_it(opened: Opener, wish: str, seconds: str) -> None:
    mark = opened(reduced_motion=wish).locator(".zoo-point .zoo-mark").first
    assert mark.evaluate("e => getComputedStyle(e).transitionDuration") == seconds


def test_a_line_can_be_copied(opened: Opener, site: Site) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    row = next(row for row in site.rows if row.key == "mobilenet_v3_large.ra_in1k")
    button = page.get_by_role("button", name=f"Copy {row.line}", exact=True)
    button.click()
    page.wait_for_function("document.querySelector('.zoo-said').textContent")
    assert page.evaluate("navigator.clipboard.readText()") == row.line
    assert page.locator(".zoo-said").text_content() == f"Copied {row.line}"
    assert button.text_content() == "Copied"


def test_a_line_that_cannot_be_copied_is_selected(opened: Opener, site: Site) -> None:
    page = opened()
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')) }")
    page.get_by_role("button", name="Copy").first.click()
    page.wait_for_function("!getSelection().isCollapsed")
    assert page.evaluate("getSelection().toString()") == site.rows[0].line


def test_names_are_text_whatever_they_look_like(opened: Opener, site: Site) -> None:
    page = opened("made.html")
    row = next(row for row in site.made if row.name == EVIL)
    cells = page.locator(f"[id='{identity(row)}'] :is(th, td)")
    assert cells.first.text_content() == EVIL
    assert cells.nth(1).text_content() == "<b>tag256×256"
    assert page.locator(f"[id='{identity(row)}'] .zoo-license").text_content() == EVIL_LICENSE
    assert page.locator(f"[id='{identity(row)}'] code").text_content() == row.line
    page.locator(".zoo-point").filter(has=page.locator("path")).last.focus()
    page.locator(f".zoo-point[href='#{identity(row)}']").hover()
    assert page.locator(".zoo-panel").inner_text().splitlines()[:2] == [EVIL, "<b>tag"]
    assert "at 256×256" in page.locator(".zoo-panel").inner_text()
    page.locator("[name=license]").select_option(EVIL_LICENSE)
    assert shown(page) == [identity(row)]
    page.reload()
    assert shown(page) == [identity(row)]
    assert page.locator(".zoo :is(script, img, b)").count() == 0


def test_other_pages_are_left_alone(opened: Opener) -> None:
    page = opened("index.html")
    assert page.locator("script[src$='zoo.js']").count() == 1
    assert page.locator("h1").inner_text().startswith("Home")


def test_the_page_works_from_a_folder(browser: Browser, site: Site) -> None:
    with browsers.visited(browser, f"{(site.folder / 'zoo.html').as_uri()}#family=resnet&sort=-macs") as visit:
        found = sorted((row for row in site.rows if row.family == "resnet"), key=lambda row: row.macs, reverse=True)
        assert shown(visit.page) == ids(found)
        visit.page.locator("[name=q]").fill("18")
        assert visit.page.evaluate("location.href").endswith("#q=18&family=resnet&sort=-macs")
        assert {url.partition("://")[0] for url in visit.asked} == {"file"}
        # Material requests a search index, which only a site built for the web has.
        missing = [line for line in visit.said if line.startswith("file://")]
        assert [line for line in missing if "/search/search_index.js:" not in line] == []


def test_a_missing_chromium_is_a_failure_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        browsers.chromium()

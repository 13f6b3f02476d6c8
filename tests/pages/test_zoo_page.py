"""The zoo page in a real browser: sorting, filtering, and views stored in the address."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Page
from support import browser as browsers
from support.zoo_site import Opener, Site, address, browser, identity, ids, opened, shown, site

from docs.builder import zoo
from docs.builder.zoo_rows import Row

__all__ = ["address", "browser", "opened", "site"]


def test_every_column_sorts_both_ways_with_what_is_missing_last(opened: Opener, site: Site) -> None:
    page = opened()
    assert page.locator("th[data-key]").count() == len(zoo.COLUMNS) == 15
    for column in zoo.COLUMNS:
        header = page.locator(f"th[data-key={column.key}]")
        stated = [row for row in site.rows if column.value(row) not in (None, "")]
        missing = [row for row in site.rows if column.value(row) in (None, "")]
        for direction in ("ascending", "descending", "ascending"):
            header.get_by_role("button").click()
            # Python's sort preserves the order of equal rows in both directions.
            expected = sorted(stated, key=column.value, reverse=direction == "descending")
            assert shown(page) == ids(expected + missing), (column.key, direction)
            assert header.get_attribute("aria-sort") == direction
            assert page.locator("th[aria-sort]").count() == 1


def test_sorting_starts_from_the_order_of_the_page_each_time(opened: Opener, site: Site) -> None:
    page = opened()
    page.get_by_role("button", name="Sort by multiply-adds").click()
    page.get_by_role("button", name="Sort by license").click()
    licensed = [row for row in site.rows if row.license]
    plain = [row for row in site.rows if not row.license]
    assert shown(page) == ids(sorted(licensed, key=lambda row: row.license) + plain)


def median(row: Row, source: str) -> float:
    return row.latency[source][1] if source in row.latency else float("inf")


FILTERS: dict[str, tuple[dict[str, str], Callable[[Row], bool]]] = {
    "name": ({"q": "small"}, lambda row: "small" in row.name),
    "tag, any case": ({"q": "IMAGENET1K_v1"}, lambda row: row.tag.lower() == "imagenet1k_v1"),
    "license": ({"q": "apache"}, lambda row: row.license == "Apache-2.0"),
    "two words": ({"q": "large bsd"}, lambda row: "large" in row.name and row.license.startswith("BSD")),
    "head": ({"q": "ssdlite"}, lambda row: row.head == "ssdlite"),
    "nothing": ({"q": "no such thing"}, lambda row: False),
    "family": ({"family": "resnet"}, lambda row: "resnet" in row.name),
    "plugin": ({"plugin": "torchvision"}, lambda row: row.name.startswith("torchvision/")),
    "license chosen": ({"license": "BSD-3-Clause"}, lambda row: row.license == "BSD-3-Clause"),
    "weights": ({"weights": "on"}, lambda row: row.tag != ""),
    "parameters": ({"parameters": "3.5"}, lambda row: row.parameters <= 3_500_000),
    "MACs": ({"macs": "60"}, lambda row: row.macs <= 60_000_000),
    "memory": ({"memory": "2.2"}, lambda row: row.memory is not None and row.memory <= 2_200_000),
    "latency": ({"latency": "2"}, lambda row: median(row, "amd-epyc-2-cores/onnxruntime") <= 2),
    "latency on another machine": (
        {"on": "second/openvino", "latency": "2"},
        lambda row: median(row, "second/openvino") <= 2,
    ),
    "latency of another runtime": (
        {"on": "amd-epyc-2-cores/eager", "latency": "6"},
        lambda row: median(row, "amd-epyc-2-cores/eager") <= 6,
    ),
    "a limit of nothing": ({"macs": "0"}, lambda row: False),
    "several": (
        {"family": "mobilenet_v3", "weights": "on", "parameters": "3"},
        lambda row: "mobilenet_v3" in row.name and row.tag != "" and row.parameters <= 3_000_000,
    ),
}


def fill(page: Page, values: dict[str, str]) -> None:
    for name, value in values.items():
        control = page.locator(f"form.zoo-filters [name={name}]")
        if name in ("family", "plugin", "license", "on"):
            control.select_option(value)
        elif name == "weights":
            control.check()
        else:
            control.fill(value)


@pytest.mark.parametrize("case", FILTERS)
def test_filters_leave_the_rows_that_pass_and_announce_how_many(opened: Opener, site: Site, case: str) -> None:
    values, passes = FILTERS[case]
    page = opened()
    fill(page, values)
    left = [row for row in site.rows if passes(row)]
    assert shown(page) == ids(left)
    assert page.get_by_role("status").first.text_content() == f"{len(left)} of {len(site.rows)} rows"
    faded = page.locator(".zoo-point.zoo-out").evaluate_all("all => all.map(a => a.getAttribute('href').slice(1))")
    assert set(faded) == {identity(row) for row in site.rows if row.top_1 is not None and not passes(row)}


def test_limits_and_counts_refer_to_the_backbone_without_its_classifier(opened: Opener) -> None:
    page = opened("zoo.html#parameters=3")
    left = shown(page)
    assert {"zoo-mobilenet_v2.imagenet1k_v1", "zoo-mobilenet_v3_large.imagenet1k_v2"} < set(left)
    row = page.locator("[id='zoo-mobilenet_v2.imagenet1k_v1']")
    assert row.locator(".zoo-parameters").inner_text().split() == ["2.22", "M", "with", "head", "3.50", "M"]
    assert row.locator(".zoo-macs").inner_text().split() == ["299.5", "M", "with", "head", "300.8", "M"]
    title = page.locator("th[data-key=parameters]").get_attribute("title")
    assert title == "Parameters of the backbone; small: with the head"


def test_the_page_states_why_values_are_missing(opened: Opener) -> None:
    text = opened().locator("article").inner_text()
    assert "Rows without published weights show “–”." in text.replace('"–"', "“–”")
    assert "Their latency was not measured." in text
    assert "its own layer tables, which torchvision's models do not have" in text.replace("’", "'")


def test_reset_shows_everything_in_the_first_order(opened: Opener, site: Site) -> None:
    page = opened("zoo.html#q=large&weights=1&sort=-macs")
    assert shown(page) != ids(site.rows)
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("!location.hash")
    assert shown(page) == ids(site.rows)
    assert page.locator("th[aria-sort]").count() == 0


def test_a_view_is_in_the_address_and_comes_back_from_it(opened: Opener) -> None:
    page = opened()
    fill(page, {"q": "v3 & large", "license": "Apache-2.0", "weights": "on", "macs": "500"})
    fill(page, {"q": "large"})
    page.get_by_role("button", name="Sort by top-1 accuracy").click()
    page.get_by_role("button", name="Sort by top-1 accuracy").click()
    before, url = shown(page), page.evaluate("location.href")
    assert len(before) == 7
    assert url.endswith("#q=large&license=Apache-2.0&macs=500&weights=1&sort=-accuracy")

    page.reload()
    assert (shown(page), page.evaluate("location.href")) == (before, url)
    assert page.locator("[name=q]").input_value() == "large"
    assert page.locator("[name=weights]").is_checked()
    assert page.locator("th[data-key=accuracy]").get_attribute("aria-sort") == "descending"
    assert shown(opened(url.rpartition("/")[2])) == before


@pytest.mark.parametrize("hash_", ["#family=nobody&sort=nothing", "#=", "#macs=many", "#zoo-mobilenet_v2_075", "#a"])
def test_an_address_that_says_nothing_of_use_shows_everything_and_is_forgotten(
    opened: Opener, site: Site, hash_: str
) -> None:
    page = opened(f"zoo.html{hash_}")
    assert shown(page) == ids(site.rows)
    assert page.locator("select").evaluate_all("all => all.map(select => select.selectedIndex)") == [0, 0, 0, 0]
    page.locator("[name=q]").fill("resnet")
    assert page.evaluate("location.hash") == "#q=resnet"


def test_following_a_link_to_another_view_changes_the_view(opened: Opener, site: Site) -> None:
    page = opened("zoo.html#q=resnet")
    page.evaluate("location.hash = 'family=mnasnet'")
    page.wait_for_function("document.querySelector('[name=q]').value === ''")
    assert shown(page) == ids([row for row in site.rows if row.family == "mnasnet"])


def test_the_chosen_machine_fills_the_column_and_is_in_the_address(opened: Opener, site: Site) -> None:
    page = opened()
    cell = page.locator("[id='zoo-mobilenet_v2.imagenet1k_v1'] .zoo-latency")
    before = cell.text_content()
    page.locator("[name=on]").select_option("second/openvino")
    assert cell.text_content() == "1.501.00–2.00"
    assert page.locator("[id='zoo-mobilenet_v2_075'] .zoo-latency").text_content() == "–"
    page.get_by_role("button", name="Sort by latency").click()
    assert page.evaluate("location.hash") == "#on=second%2Fopenvino&sort=latency"
    first = shown(page)
    measured = [row for row in site.rows if "second/openvino" in row.latency]
    assert first[: len(measured)] == ids(sorted(measured, key=lambda row: median(row, "second/openvino")))
    page.reload()
    assert (shown(page), cell.text_content()) == (first, "1.501.00–2.00")
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("!location.hash")
    assert cell.text_content() == before


def test_a_copied_address_opens_the_same_view_from_a_folder(browser: Browser, site: Site) -> None:
    with browsers.visited(browser, (site.folder / "zoo.html").as_uri()) as visit:
        fill(visit.page, {"q": "large", "license": "Apache-2.0", "memory": "5", "on": "amd-epyc-2-cores/eager"})
        visit.page.get_by_role("button", name="Sort by latency").click()
        before, copied = shown(visit.page), visit.page.evaluate("location.href")
        assert 0 < len(before) < len(site.rows)
    with browsers.visited(browser, copied) as visit:
        assert shown(visit.page) == before
        assert visit.page.locator("[name=on]").input_value() == "amd-epyc-2-cores/eager"
        assert visit.page.locator("[name=memory]").input_value() == "5"


def test_each_machine_is_described(opened: Opener) -> None:
    text = opened().locator("article").inner_text()
    assert "Second <b>" in text
    assert "Imaginary, 1 core, 1 thread; Linux, riscv64; featuretap 0.1.0, openvino 1.0. Measured on 2026-01-02" in text
    assert "in 3 rounds, lowest median of 2 runs." in text

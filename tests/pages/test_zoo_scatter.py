"""The zoo's scatter plot in a real browser: its content, and its use by mouse, touch and keyboard."""

from itertools import combinations
from typing import Any

import pytest
from support.zoo_site import (
    DESK,
    PHONE,
    Opener,
    Site,
    address,
    browser,
    by_multiply_adds,
    focused,
    identity,
    ids,
    opened,
    press,
    site,
)

__all__ = ["address", "browser", "opened", "site"]


def test_only_top_1_is_in_the_scatter(opened: Opener, site: Site) -> None:
    names = opened().locator(".zoo-point").evaluate_all("all => all.map(a => a.getAttribute('href').slice(1))")
    assert names == ids(by_multiply_adds(site.rows))
    assert len(names) > 25


def test_a_point_lies_where_its_numbers_are(opened: Opener) -> None:
    page = opened()
    places = page.locator(".zoo-point").evaluate_all(
        "all => all.map(a => [a.dataset.name, a.dataset.weights, a.querySelector('path').getBoundingClientRect()])"
    )
    at = {(name, weights): (box["x"] + box["width"] / 2, box["y"]) for name, weights, box in places}
    small, large = at["mobilenet_v3_small", "imagenet1k_v1"], at["mobilenet_v3_large", "imagenet1k_v1"]
    eighteen, fifty = at["torchvision/resnet18", "IMAGENET1K_V1"], at["torchvision/resnet50", "IMAGENET1K_V1"]
    # Equal factors are equal distances on a logarithmic scale: 3.90 from small to large, 2.25 from ResNet-18 to 50.
    assert (large[0] - small[0]) / (fifty[0] - eighteen[0]) == pytest.approx(1.675, abs=0.01)
    # The differences in accuracy are 6.374 and 6.372 percentage points.
    assert (small[1] - large[1]) / (eighteen[1] - fifty[1]) == pytest.approx(1.0, abs=0.01)


def test_a_point_under_the_pointer_says_what_it_is_and_a_click_leads_to_its_row(opened: Opener) -> None:
    page = opened()
    panel = page.locator(".zoo-panel")
    assert not panel.is_visible()
    point = page.locator('.zoo-point[data-name="torchvision/resnet18"]')
    point.hover()
    assert panel.inner_text().splitlines() == [
        "torchvision/resnet18",
        "IMAGENET1K_V1",
        "69.758 % top-1",
        "1.81 G multiply-adds",
        "11.18 M parameters, 11.69 M with classifier",
    ]
    point.click()
    assert focused(page) == "zoo-torchvision-2f-resnet18.IMAGENET1K_V1"
    page.mouse.move(0, 0)
    assert not panel.is_visible()


def test_a_finger_is_told_what_a_point_is_before_it_leads_anywhere(opened: Opener) -> None:
    page = opened(**PHONE, has_touch=True, is_mobile=True)
    point = page.locator('.zoo-point[data-name="torchvision/resnet18"]')
    point.tap()
    assert page.locator(".zoo-panel").is_visible()
    assert focused(page, "tagName") != "TR"
    point.tap()
    assert focused(page) == "zoo-torchvision-2f-resnet18.IMAGENET1K_V1"


def test_the_keyboard_alone_walks_the_scatter_and_leaves_it(opened: Opener, site: Site) -> None:
    page = opened()
    points = by_multiply_adds(site.rows)

    def here() -> Any:
        return page.evaluate("document.activeElement.getAttribute('href')")

    page.get_by_role("button", name="Reset").focus()
    press(page, "Tab")
    assert here() == f"#{identity(points[0])}"
    assert page.locator(".zoo-panel strong").text_content() == points[0].name
    press(page, "ArrowRight", "ArrowUp", "ArrowRight", "ArrowLeft")
    assert here() == f"#{identity(points[2])}"
    press(page, "End", "ArrowRight")
    assert here() == f"#{identity(points[-1])}"
    press(page, "Home", "ArrowDown")
    assert here() == f"#{identity(points[0])}"

    press(page, "ArrowRight", "Tab")
    assert not page.locator(".zoo-panel").is_visible()
    press(page, "Shift+Tab")
    assert here() == f"#{identity(points[1])}"

    press(page, "Escape")
    assert not page.locator(".zoo-panel").is_visible()
    assert focused(page, "tagName") == "FIGURE"
    press(page, "Tab", "Enter")
    assert focused(page) == identity(points[1])
    top, bottom = page.evaluate("(r => [r.top, r.bottom])(document.activeElement.getBoundingClientRect())")
    assert 0 <= top < bottom <= DESK["viewport"]["height"]


def test_the_keyboard_passes_points_that_are_filtered_out(opened: Opener, site: Site) -> None:
    page = opened("zoo.html#family=resnet")
    resnets = by_multiply_adds([row for row in site.rows if row.family == "resnet"])
    walked = []
    page.locator('.zoo-point[tabindex="0"]').focus()
    for _ in resnets:
        walked.append(page.evaluate("document.activeElement.getAttribute('href')"))
        press(page, "ArrowRight")
    assert walked == [f"#{id_}" for id_ in ids(resnets)]
    assert page.locator('.zoo-point[tabindex="0"]').count() == 1


def test_where_everything_is_filtered_out_no_point_takes_the_focus(opened: Opener) -> None:
    assert opened("zoo.html#q=nobody").locator('.zoo-point[tabindex="0"]').count() == 0


def test_a_row_under_the_pointer_shows_its_point(opened: Opener) -> None:
    page = opened()
    page.locator("#zoo-mobilenet_v2\\.ra_in1k").hover()
    assert page.locator(".zoo-point.zoo-lit").get_attribute("href") == "#zoo-mobilenet_v2.ra_in1k"


@pytest.mark.parametrize("width", [360, 600, 800, 1024, 1366, 1920])
def test_no_label_of_the_scatter_runs_into_another_or_a_point(opened: Opener, width: int) -> None:
    page = opened(viewport={"width": width, "height": 900})
    boxes = "all => all.map(e => e.getBoundingClientRect()).filter(b => b.width)"
    labels = page.locator(".zoo-labels text").evaluate_all(boxes)
    ticks = page.locator(".zoo-axes text").evaluate_all(boxes)
    marks = page.locator(".zoo-point .zoo-mark").evaluate_all(boxes)
    assert len(labels) >= (12 if width > 960 else 8)
    for box, other in [*combinations(labels, 2), *combinations(ticks, 2), *((a, b) for a in labels for b in marks)]:
        apart_x = box["right"] <= other["left"] or other["right"] <= box["left"]
        # A text box reserves room for ascenders and descenders that these labels do not have.
        apart_y = box["bottom"] - 2 <= other["top"] or other["bottom"] <= box["top"] + 2
        assert apart_x or apart_y, (box, other)

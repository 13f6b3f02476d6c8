"""The site, built with `make docs`: no warnings, no dead links, no requests to other servers."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from filelock import FileLock
from support import ROOT
from support import browser as browsers

LOADED = {
    ("script", "src"),
    ("img", "src"),
    ("link", "href"),
    ("iframe", "src"),
    ("source", "src"),
    ("source", "srcset"),
}


class Page(HTMLParser):
    """Links, loaded files and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if (tag, name) in LOADED and value:
                self.loaded.append(value)
            if (tag, name) == ("a", "href") and value:
                self.links.append(value)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site once for all test processes."""
    temporary = tmp_path_factory.getbasetemp()
    folder = (temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary) / "whole-site"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            built = subprocess.run(
                [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", f"{folder}-begun"],
                cwd=ROOT,
                env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "error"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
            Path(f"{folder}-begun").rename(folder)
    return folder


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    return {path.resolve(): Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_document_has_a_page(pages: dict[Path, Page], site: Path) -> None:
    names = {str(path.relative_to(site.resolve())) for path in pages}
    written = {str(path.relative_to(ROOT / "docs").with_suffix(".html")) for path in (ROOT / "docs").rglob("*.md")}
    outside = {"changes.html", "contributing.html", "releasing.html", "results.html", "examples.html", "zoo.html"}
    assert names == written | outside | {"example-plugin.html", "example-efficientnet-lite.html"}


def test_every_link_has_a_target(pages: dict[Path, Page]) -> None:
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            found = pages.get(target)
            if not target.exists() or (found and unquote(parts.fragment) not in found.anchors):
                dead.append(f"{path.name}: {link}")
    assert dead == []


def test_nothing_is_loaded_from_other_servers(pages: dict[Path, Page], site: Path) -> None:
    assert [link for page in pages.values() for link in page.loaded if urlsplit(link).scheme or link[:2] == "//"] == []
    styles = [path.read_text() for path in site.rglob("*.css")]
    assert [link for text in styles for link in re.findall(r"url\((?:https?:)?//[^)]+", text)] == []


def test_every_loaded_file_exists(pages: dict[Path, Page]) -> None:
    loaded = {(path, urlsplit(link).path) for path, page in pages.items() for link in page.loaded}
    assert [f"{path.name}: {link}" for path, link in loaded if not (path.parent / unquote(link)).exists()] == []


def test_the_navigation_has_five_tabs_of_at_most_eight_pages() -> None:
    tabs = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert [list(tab) for tab in tabs] == [["Get started"], ["Recipes"], ["Guides"], ["Reference"], ["Project"]]
    for (entries,) in map(dict.values, tabs):
        assert len(entries) <= 8
        assert all(isinstance(page, str) for entry in entries for page in entry.values())


def test_search_works_when_the_site_is_opened_from_a_folder(site: Path) -> None:
    with browsers.launched() as browser, browsers.visited(browser, (site / "index.html").as_uri()) as visit:
        visit.page.fill("input[name=query]", "reduced_tail")
        visit.page.click(".md-search-result__item a[href*='reference/specs.html']")
        visit.page.wait_for_url("**/reference/specs.html*")
        assert visit.said == []
        assert {urlsplit(asked).scheme for asked in visit.asked} == {"file"}


def test_every_page_opens_without_console_messages_and_fits_a_phone(pages: dict[Path, Page], site: Path) -> None:
    with browsers.served(site) as address, browsers.launched() as browser:
        for path in sorted(pages):
            name = path.relative_to(site.resolve())
            with browsers.visited(browser, f"{address}/{name}", viewport={"width": 360, "height": 740}) as visit:
                visit.page.wait_for_load_state("networkidle")
                assert visit.said == [], name
                assert {urlsplit(asked).netloc for asked in visit.asked} == {urlsplit(address).netloc}
                overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                assert visit.page.evaluate(overflow) == 0, f"{name} is wider than a phone"


CUT_OFF = """() => [...document.querySelectorAll(".md-content pre > code")]
    .filter((code) => code.scrollWidth > code.clientWidth).map((code) => code.innerText)"""


def test_blocks_of_code_are_not_cut_off(pages: dict[Path, Page]) -> None:
    with browsers.launched() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        cut_off = []
        for path in sorted(pages):
            page.goto(path.as_uri())
            cut_off += [(path.name, max(text.splitlines(), key=len)) for text in page.evaluate(CUT_OFF)]
    assert cut_off == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(scheme: str, site: Path) -> None:
    with browsers.launched() as browser:
        for name in ("index", "zoo", "how-to/features-for-my-detector"):
            with browsers.visited(browser, (site / f"{name}.html").as_uri(), color_scheme=scheme) as visit:
                found = Axe().run(visit.page).response["violations"]
                assert [(each["id"], node["html"]) for each in found for node in each["nodes"]] == [], name


def test_the_reference_has_every_function_of_the_registry(pages: dict[Path, Page], site: Path) -> None:
    from featuretap import registry

    anchors = pages[(site / "reference" / "registry.html").resolve()].anchors
    functions = {name for name in registry.__all__ if name.islower()} - {"default"}
    assert functions <= {anchor.rpartition(".")[2] for anchor in anchors if anchor.startswith("featuretap.registry.")}


def test_the_reference_has_every_hook(pages: dict[Path, Page], site: Path) -> None:
    from featuretap.catalogue import hookspecs

    anchors = pages[(site / "reference" / "plugins.html").resolve()].anchors
    hooks = {name for name in vars(hookspecs) if name.startswith("featuretap_")}
    assert len(hooks) >= 6
    assert hooks <= {anchor.rpartition(".")[2] for anchor in anchors}

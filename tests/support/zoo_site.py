"""The zoo page for the tests: built once, served locally, and opened in a browser that records messages."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import yaml
from filelock import FileLock
from playwright.sync_api import Browser, Page
from support import ROOT
from support import browser as browsers

from docs.builder import zoo
from docs.builder.zoo_machines import Machine, read_machines
from docs.builder.zoo_rows import Row, rows
from docs.builder.zoo_scatter import identity
from featuretap.registry import Registry
from featuretap.registry.hookspecs import WeightsEntry, hookimpl
from featuretap.registry.specs import RE, BackboneSpec, Conv
from featuretap.specs.preprocessing import Preprocessing

DESK = {"viewport": {"width": 1366, "height": 900}}
PHONE = {"viewport": {"width": 360, "height": 740}}
EVIL = "<script>alert(1)"
EVIL_LICENSE = '"><img src=x onerror="alert(2)">'


MACHINES = {
    **read_machines(),
    "second": Machine(
        "Second <b>",
        note="",
        date="2026-01-02",
        processor="Imaginary",
        vector_units=(),
        system="Linux, riscv64",
        cores=1,
        threads=1,
        versions={"featuretap": "0.1.0", "openvino": "1.0"},
        size=(224, 224),
        batch=1,
        rounds=3,
        runs=2,
        milliseconds={"mobilenet_v1": {"openvino": (1.0, 2.5, 3.0)}, "mobilenet_v2": {"openvino": (1.0, 1.5, 2.0)}},
    ),
}
"""The measured machines, and one that was never built."""


def made_plugin() -> ModuleType:
    """Return a plugin with HTML in its names, weights for larger images, and a backbone that ends at C2."""

    @hookimpl
    def featuretap_backbones() -> list[BackboneSpec]:
        stages = tuple((Conv(3, channels, RE),) for channels in (8, 16, 24, 32, 40))
        return [BackboneSpec(EVIL, stages=stages), BackboneSpec("stub", stages=stages[:2])]

    @hookimpl
    def featuretap_weights() -> list[WeightsEntry]:
        return [
            WeightsEntry(
                f"{EVIL}.<b>tag",
                url="https://example.org/file.pth",
                sha256="00000000",
                layout="featuretap",
                norm_eps=1e-5,
                license=EVIL_LICENSE,
                accuracy=50.0,
                preprocessing=Preprocessing(crop=256),
            )
        ]

    plugin = ModuleType("made")
    vars(plugin).update(featuretap_backbones=featuretap_backbones, featuretap_weights=featuretap_weights)
    return plugin


Opener = Callable[..., Page]
"""The path of a page of the site, and Playwright's settings of a context → the page, which a test drives."""


class Site(NamedTuple):
    """The built site: its folder, the rows of `zoo.html`, and those of `made.html`, which include a plugin's."""

    folder: Path
    rows: list[Row]
    made: list[Row]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Build the site once for all test processes."""
    temporary = tmp_path_factory.getbasetemp()
    shared = temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary
    pickled = shared / "zoo" / "rows.pickle"
    with FileLock(shared / "zoo.lock"):
        if not pickled.exists():
            found = rows(Registry(discover=False), machines=MACHINES)
            made = rows(Registry([made_plugin()], discover=False), others=())
            build(
                pickled.parent,
                {"zoo.md": zoo.page(found, MACHINES), "made.md": zoo.page(made, {}), "index.md": "# Home\n"},
            )
            pickled.write_bytes(pickle.dumps((found, made)))
    return Site(pickled.parent / "site", *pickle.loads(pickled.read_bytes()))


def build(folder: Path, pages: dict[str, str]) -> None:
    """Build pages with the site's theme, extensions, styles and scripts."""
    shutil.copytree(ROOT / "docs" / "assets", folder / "docs" / "assets")
    for name, text in pages.items():
        (folder / "docs" / name).write_text(text)
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    kept = {key: value for key, value in settings.items() if key not in ("hooks", "nav", "exclude_docs")}
    (folder / "mkdocs.yml").write_text(yaml.safe_dump({**kept, "plugins": ["search"]}))
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    subprocess.run(command, cwd=folder, env=environment, check=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(site: Site) -> Iterator[str]:
    with browsers.served(site.folder) as address:
        yield address


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Opener]:
    """Open a page of the site. Fail on console messages and on requests to other servers."""
    visits = []

    def opened(path: str = "zoo.html", **settings: Any) -> Page:
        visit = browsers.visited(browser, f"{address}/{path}", **{**DESK, **settings})
        visits.append((visit, visit.__enter__()))
        return visits[-1][1].page

    yield opened
    for context, visit in visits:
        said, asked = visit.said, visit.asked
        context.__exit__(None, None, None)
        assert said == []
        assert [url for url in asked if not url.startswith(f"{address}/")] == []
        assert asked


def shown(page: Page) -> list[str]:
    """Return the ids of the visible rows, from top to bottom."""
    return [
        str(id_) for id_ in page.evaluate("[...document.querySelectorAll('tbody tr:not([hidden])')].map(r => r.id)")
    ]


def ids(found: list[Row]) -> list[str]:
    return [identity(row) for row in found]


def focused(page: Page, what: str = "id") -> Any:
    return page.evaluate(f"document.activeElement.{what}")


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def by_multiply_adds(found: list[Row]) -> list[Row]:
    """Return the rows shown in the scatter plot, in its order."""
    points = [row for row in found if row.top_1 is not None]
    return sorted(points, key=lambda row: (row.measured_macs or 0, row.top_1 or 0))

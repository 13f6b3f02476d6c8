"""Every code block of the pages can be read, every link is valid, and every mentioned test exists."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT
from support.pages import (
    EXPORTING,
    FILES,
    INSTALLING,
    NAMES,
    NOT_FOLLOWED,
    NOT_RUN,
    PAGES,
    blocks,
    broken_links,
    commands,
    missing_tests,
    read_page,
    section,
)

READERS: dict[str, Callable[[str], Any]] = {
    "python": lambda text: compile(text, "block", "exec"),
    "bash": str,
    "console": commands,
    "toml": tomllib.loads,
    "json": json.loads,
    "yaml": yaml.safe_load,
    "text": str,
}


def test_all_pages_are_found() -> None:
    assert {"README.md", "docs/heads.md", *INSTALLING} <= set(NAMES)
    assert {*NOT_RUN, *NOT_FOLLOWED, *FILES, *EXPORTING, *INSTALLING} <= set(NAMES)


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_every_block_of_a_page_can_be_read(path: Path) -> None:
    for block in blocks(read_page(path)):
        READERS[block.language](block.text)


def test_a_page_includes_the_installation_commands() -> None:
    (install,) = blocks(section("installation.md", "install"))
    assert install.language == "bash"
    assert "pip install" in install.text


def test_the_readme_has_the_installation_commands() -> None:
    (install,) = blocks(section("installation.md", "install"))
    assert install.text in [block.text for block in blocks((ROOT / "README.md").read_text())]


def test_a_missing_section_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"docs/installation.md has the section 'nothing' 0 times"):
        section("installation.md", "nothing")


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_every_link_of_a_page_leads_somewhere(path: Path) -> None:
    assert broken_links(path) == []


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_every_test_that_a_page_mentions_exists(path: Path) -> None:
    assert missing_tests(path.read_text()) == []


@pytest.mark.parametrize(
    ("page", "missing"),
    [
        ("in `tests/repository/test_pages.py`, `tests/support/` and tests/conftest.py.", []),
        ("a plugin's own `featuretap-tinynet/tests/test_nothing.py`", []),
        ("in `tests/test_nothing.py` and tests/nothing/", ["tests/test_nothing.py", "tests/nothing/"]),
    ],
)
def test_a_missing_test_is_found(page: str, missing: list[str]) -> None:
    assert missing_tests(page) == missing


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("```rust\nfn main() {}\n```\n", "line 1: a block in 'rust'"),
        ("```\na\n```\n", "line 1: a block in ''"),
        ("```python\n", "line 1: a block without an end"),
        ("<!-- not run -->\n```python\n1\n```\n", "why is this block not run"),
        ("<!-- not run: -->\n```python\n1\n```\n", "why is this block not run"),
    ],
)
def test_a_block_that_nobody_can_follow_is_an_error(page: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        blocks(page)


@pytest.mark.parametrize(
    ("page", "broken"),
    [
        ("[a](other.md) [b](other.md#a-title--more) [c](folder/) ![d](picture.png)", []),
        ("# Here `code`\n\n[a](#here-code) [b](https://nobody.example/x#y) [c](mailto:a@b.c)", []),
        ("# Twice\n# Twice\n[a](#twice-1)", []),
        ("```text\n[a](nowhere.md)\n```\nand `[b](nowhere.md)`", []),
        ("[a](nowhere.md)", ["nowhere.md"]),
        ("[a](other.md#nothing)", ["other.md#nothing"]),
        ("[a](#nothing)", ["#nothing"]),
        ("```text\n# No title\n```\n[a](#no-title)", ["#no-title"]),
        ("![a](nowhere.png)", ["nowhere.png"]),
        ('<img src="nowhere.png">', ["nowhere.png"]),
        ("[a][b]\n\n[b]: nowhere.md", ["nowhere.md"]),
        ("# Twice\n[a](#twice-1)", ["#twice-1"]),
    ],
)
def test_links_that_lead_nowhere_are_found(page: str, broken: list[str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "picture.png").touch()
    (tmp_path / "other.md").write_text("# A title – *more*\n")
    (tmp_path / "page.md").write_text(page)
    assert broken_links(tmp_path / "page.md") == broken

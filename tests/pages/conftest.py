"""Terminals and readers for the tests that follow pages, and the browser for the tests of the site."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.distributions import Environment
from support.reader import Reader
from support.reader_files import belongings
from support.terminal import Terminal


@pytest.fixture(scope="session")
def owned(tmp_path_factory: pytest.TempPathFactory, official_weights: Path) -> Path:
    return belongings(tmp_path_factory.mktemp("belongings"), official_weights)


@pytest.fixture(scope="session")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A terminal shared by all pages that install nothing."""
    environment = Environment(tmp_path_factory.mktemp("terminal") / "environment")
    installed = sorted(environment.site.iterdir())
    with Terminal(environment) as terminal:
        yield terminal
    assert sorted(environment.site.iterdir()) == installed


@pytest.fixture
def reader(tmp_path: Path, owned: Path, terminal: Terminal) -> Iterator[Reader]:
    """A reader with photographs, data sets, published weights and the examples."""
    folder = Path(shutil.copytree(owned, tmp_path / "folder", symlinks=True))
    with Reader(folder, terminal) as reader:
        yield reader


@pytest.fixture
def installing_reader(tmp_path: Path, owned: Path) -> Iterator[Reader]:
    """The same reader, in a terminal with a separate environment."""
    folder = Path(shutil.copytree(owned, tmp_path / "folder", symlinks=True))
    with Terminal(Environment(tmp_path / "environment")) as terminal, Reader(folder, terminal) as reader:
        yield reader


@pytest.fixture
def empty(tmp_path: Path, terminal: Terminal) -> Iterator[Reader]:
    """A reader with an empty folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with Reader(folder, terminal) as reader:
        yield reader

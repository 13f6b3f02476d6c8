"""Errors that say what to write in Python say on the command line what to type."""

import pytest
from support import ROOT

from featuretap.command_line.wording import WORDS, as_typed


@pytest.mark.parametrize("written", WORDS)
def test_every_replaced_phrase_occurs_in_an_error(written: str) -> None:
    folders = ("registry", "training", "inference", "extraction")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if path.name != "wording.py"]
    assert any(written in path.read_text() for path in sources)


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        (
            "no backbone named 'x'; registry.list_backbones() names them",
            "no backbone named 'x'; `featuretap list` names them",
        ),
        ("put it there, or give its path as pretrained=; none", "put it there, or give its path as --weights; none"),
        ("anything else", "anything else"),
    ],
)
def test_hints_are_phrased_as_they_are_typed(message: str, typed: str) -> None:
    assert as_typed(message) == typed

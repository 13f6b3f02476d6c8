"""Hints of errors: messages end with a hint, which the command line phrases with its own flags and commands."""

import ast
import pickle

import pytest
from support import ROOT

from featuretap.command_line import TYPED, phrase
from featuretap.registry import errors
from featuretap.registry.errors import FeaturetapError, Hint, UnknownBackboneError

UNKNOWN = UnknownBackboneError("no backbone named 'x'", hint=Hint("see", "registry.list_backbones()"))
CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, FeaturetapError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_a_hint_and_keeps_it_between_processes(kind: type[FeaturetapError]) -> None:
    hint = Hint("give its path as", "pretrained=")
    for error in (kind("no such file", hint=hint), pickle.loads(pickle.dumps(kind("no such file", hint=hint)))):
        assert str(error) == "no such file; give its path as pretrained="
        assert (error.problem, error.hint) == ("no such file", hint)
    assert (str(kind("plain")), kind("plain").hint) == ("plain", None)


@pytest.mark.parametrize(
    ("error", "typed"),
    [
        (UNKNOWN, "no backbone named 'x'; see `featuretap list`"),
        (FeaturetapError("empty", hint=Hint("give a JPEG file")), "empty; give a JPEG file"),
        (FeaturetapError("no file", hint=Hint("give it as", "path=")), "no file; give it as path="),
        (
            FeaturetapError("two formats", hint=Hint("choose with", "head='ssdlite' or head='lraspp'")),
            "two formats; choose with --head ssdlite or --head lraspp",
        ),
        (FeaturetapError("old", hint=Hint("run", "convert a='b'.pth")), "old; run convert a='b'.pth"),
        (FeaturetapError("anything else; pretrained="), "anything else; pretrained="),
    ],
)
def test_references_of_hints_are_phrased_as_they_are_typed(error: FeaturetapError, typed: str) -> None:
    assert phrase(error) == typed


def test_every_reference_of_a_hint_has_its_flag_or_command() -> None:
    paths = [
        path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in (".venv", ".typing", "tests")
    ]
    calls = [
        node
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Hint"
    ]
    # Hints that consist of a full command with a file name are not literals and are printed unchanged.
    references = [call.args[1] for call in calls if call.args[1:] and isinstance(call.args[1], ast.Constant)]
    assert {ast.literal_eval(reference) for reference in references} == {*TYPED, "part='all'", "format='classes'"}

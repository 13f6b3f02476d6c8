"""Run the examples in docstrings, and check that every function of the public API has one."""

import ast
import doctest
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from support import ROOT
from support.package import MODULES

from featuretap import registry
from featuretap.registry import Registry, specs, testing

ALSO_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
VALUES = {"default", "HS", "RE", "RE6", "SE", "Activation", "Stages"}
"""Public names that are neither functions nor classes."""

NEED_A_NETWORK = {"featuretap.registry.registry:Registry.push"}
"""Objects with examples that cannot run here; `# doctest: +SKIP` is for nothing else."""


class Documented(NamedTuple):
    """A docstring with examples."""

    module: str
    name: str
    path: Path
    line: int
    text: str

    @property
    def label(self) -> str:
        return f"{self.module}:{self.name}" if self.name else self.module


def path_of(module: str) -> Path:
    base = ROOT.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def docstrings(node: ast.AST, names: tuple[str, ...] = ()) -> Iterator[tuple[str, int, str]]:
    """Yield the qualified name, line and docstring of everything documented below a node."""
    if isinstance(node, ALSO_DOCUMENTED) and (text := ast.get_docstring(node)):
        yield ".".join(names), getattr(node, "lineno", 1), text
    for child in ast.iter_child_nodes(node):
        yield from docstrings(child, (*names, child.name) if isinstance(child, ALSO_DOCUMENTED[1:]) else names)


def with_examples() -> Iterator[Documented]:
    """Yield the docstrings of the package that have examples, without importing the package."""
    for module in ("featuretap", *MODULES):
        path = path_of(module)
        if ">>>" in (source := path.read_text()):
            for name, line, text in docstrings(ast.parse(source)):
                if ">>>" in text:
                    yield Documented(module, name, path, line, text)


EXAMPLES = list(with_examples())


def failures_of(documented: Documented) -> str:
    """Run the examples of a docstring, and return a report of the failures.

    As in PyTorch's documentation, `torch` and `registry` are imported already. Examples import everything else.
    """
    names = {"registry": registry, "torch": torch}
    test = doctest.DocTestParser().get_doctest(
        documented.text, names, documented.label, str(documented.path), documented.line
    )
    report: list[str] = []
    doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    return "".join(report)


@pytest.fixture
def folder(tmp_path: Path, owned: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `photo.jpg` (a cat) and the folder `photographs` with two dozen images."""
    shutil.copy(owned / "photo.jpg", tmp_path)
    shutil.copytree(owned / "photographs", tmp_path / "photographs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("documented", EXAMPLES, ids=[documented.label for documented in EXAMPLES])
def test_the_examples_of_a_docstring_run(documented: Documented) -> None:
    assert failures_of(documented) == ""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (">>> 1 + 1\n3", "Got:\n    2"),
        (">>> Registry()\n", "NameError: name 'Registry' is not defined"),
        (">>> import warnings\n>>> warnings.warn('old')", "UserWarning: old"),
        (">>> import urllib.request\n>>> urllib.request.urlopen('http://192.0.2.1')", "Exception raised"),
    ],
)
def test_an_example_that_is_wrong_fails(text: str, problem: str) -> None:
    assert problem in failures_of(Documented("module", "name", Path("module.py"), 1, text))


def test_every_example_is_in_a_docstring_that_is_run() -> None:
    """Comments and other strings contain no examples, because they would not be run."""
    for path in {path_of(module) for module in MODULES}:
        lines = len(re.findall(r"^ *>>> ", path.read_text(), re.MULTILINE))
        found = [len(re.findall(r"^ *>>> ", each.text, re.MULTILINE)) for each in EXAMPLES if each.path == path]
        assert sum(found) == lines, path


def test_only_examples_that_need_a_network_are_skipped() -> None:
    assert {each.label for each in EXAMPLES if "+SKIP" in each.text} == NEED_A_NETWORK


def without_examples(names: set[str]) -> set[str]:
    return names - {each.label for each in EXAMPLES}


def origin(owner: type, name: str) -> str:
    """Return the label of a method, in the class that defines it."""
    defining = next(base for base in owner.__mro__ if name in vars(base))
    return f"{defining.__module__}:{defining.__name__}.{name}"


def test_every_function_of_the_registry_has_an_example() -> None:
    functions = {name for name in registry.__all__ if name != "Registry"} - VALUES
    methods = {origin(Registry, name) for name in functions}
    assert without_examples({"featuretap.registry", "featuretap.registry.registry:Registry", *methods}) == set()


def test_every_spec_class_has_an_example() -> None:
    things = [getattr(specs, name) for name in sorted(set(specs.__all__) - VALUES)]
    assert without_examples({f"{thing.__module__}:{thing.__name__}" for thing in things}) == set()


def test_the_conformance_kit_has_examples() -> None:
    names = {f"{testing.__name__}:{name}" for name in testing.__all__}
    assert without_examples({testing.__name__, *names}) == set()

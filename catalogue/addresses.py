"""Addresses of weights: in installed distributions, on this machine, on the web and on the Hugging Face hub."""

from __future__ import annotations

import re

HUB = "hf://"
"""How addresses on the Hugging Face hub begin."""

PACKAGE = "pkg://"
"""How addresses of files in installed distributions begin."""

FILE = "file://"

LOCAL = (PACKAGE, FILE)
"""How addresses begin that need no network."""

TIMM_HUB = "hf-hub:"
"""How timm writes addresses on the hub."""

HUB_ADDRESS = re.compile(
    r"(?:hf://|hf-hub:)([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/([\w./-]*[\w-]))?(?(2)|(?:@(\w(?:[\w./-]*[\w-])?))?)"
)
"""The revision comes behind the repository, as huggingface_hub's own paths have it, or at the end."""

PACKAGE_ADDRESS = re.compile(r"pkg://([A-Za-z\d](?:[\w.-]*[A-Za-z\d])?)/((?:(?!\.+/)[\w.+-]+/)*(?!\.+$)[\w.+-]+)")
OTHER_ADDRESS = re.compile(r"file://.*[^/]|https?://([\w.-]+|\[[\da-fA-F:.]+\])(:\d+)?/\S*[^\s/]")

FORMS = "https://host/file, file:///path, hf://owner/repository/file or pkg://distribution/path"


def is_address(location: object) -> bool:
    """Return whether a location of weights is an address, valid or not; other locations are paths."""
    return isinstance(location, str) and location.startswith((HUB, TIMM_HUB, *LOCAL, "https://", "http://"))


def is_file_address(address: object) -> bool:
    """Return whether an address is one that names a file, as the catalogue's do."""
    if not isinstance(address, str):
        return False
    if address.startswith(HUB):
        return is_valid_address(address) and split_hub_address(address)[2] != ""
    return not address.startswith(TIMM_HUB) and is_valid_address(address)


def is_valid_address(address: str) -> bool:
    """Return whether an address names a file, or a repository on the hub."""
    return any(form.fullmatch(address) for form in (HUB_ADDRESS, PACKAGE_ADDRESS, OTHER_ADDRESS))


def split_hub_address(address: str) -> tuple[str, str | None, str]:
    """Return "owner/repository", the revision or None, and the file or "" of a valid address on the hub."""
    match = HUB_ADDRESS.fullmatch(address)
    assert match
    repository, revision, file, last = match.groups()
    return repository, revision or last, file or ""


def split_package_address(address: str) -> tuple[str, str]:
    """Return the distribution and the path inside it of a valid `pkg://` address."""
    match = PACKAGE_ADDRESS.fullmatch(address)
    assert match
    return match[1], match[2]

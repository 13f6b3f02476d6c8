"""Addresses of weights: in installed distributions, on this machine, on the web and on the Hugging Face Hub."""

from __future__ import annotations

import re

HUB = "hf://"
"""Prefix of addresses on the Hugging Face Hub."""

PACKAGE = "pkg://"
"""Prefix of addresses of files in installed distributions."""

FILE = "file://"

LOCAL = (PACKAGE, FILE)
"""Prefixes of addresses that do not require a network."""

TIMM_HUB = "hf-hub:"
"""Prefix of addresses on the Hugging Face Hub in timm."""

HUB_ADDRESS = re.compile(
    r"(?:hf://|hf-hub:)([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/([\w./-]*[\w-]))?(?(2)|(?:@(\w(?:[\w./-]*[\w-])?))?)"
)
"""The revision follows the repository, as in huggingface_hub's paths, or ends the address."""

PACKAGE_ADDRESS = re.compile(r"pkg://([A-Za-z\d](?:[\w.-]*[A-Za-z\d])?)/((?:(?!\.+/)[\w.+-]+/)*(?!\.+$)[\w.+-]+)")
OTHER_ADDRESS = re.compile(r"file://.*[^/]|https?://([\w.-]+|\[[\da-fA-F:.]+\])(:\d+)?/\S*[^\s/]")

FORMS = "https://host/file, file:///path, hf://owner/repository/file or pkg://distribution/path"


def is_address(location: object) -> bool:
    """Return whether `location` is an address of weights, valid or not, rather than a path."""
    return isinstance(location, str) and location.startswith((HUB, TIMM_HUB, *LOCAL, "https://", "http://"))


def is_file_address(address: object) -> bool:
    """Return whether `address` is the valid address of a file, as required in catalogues."""
    if not isinstance(address, str):
        return False
    if address.startswith(HUB):
        return is_valid_address(address) and split_hub_address(address)[2] != ""
    return not address.startswith(TIMM_HUB) and is_valid_address(address)


def is_valid_address(address: str) -> bool:
    """Return whether `address` is the valid address of a file, or of a repository on the Hugging Face Hub."""
    return any(form.fullmatch(address) for form in (HUB_ADDRESS, PACKAGE_ADDRESS, OTHER_ADDRESS))


def split_hub_address(address: str) -> tuple[str, str | None, str]:
    """Split a valid `address` on the Hugging Face Hub into "owner/repository", revision or None, and file or ""."""
    match = HUB_ADDRESS.fullmatch(address)
    assert match
    repository, revision, file, last = match.groups()
    return repository, revision or last, file or ""


def split_package_address(address: str) -> tuple[str, str]:
    """Split a valid `pkg://` address into the distribution and the path inside it."""
    match = PACKAGE_ADDRESS.fullmatch(address)
    assert match
    return match[1], match[2]

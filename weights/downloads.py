"""Find or download weights: in installed distributions, in the caches of torch.hub and the Hugging Face Hub, or on the
web.

Downloads are kept in these caches. With `FEATURETAP_OFFLINE=1`, nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from featuretap.catalogue.addresses import (
    FILE,
    FORMS,
    HUB,
    LOCAL,
    PACKAGE,
    TIMM_HUB,
    is_address,
    is_valid_address,
    split_hub_address,
)
from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.support.atomic_write import replace_files
from featuretap.support.downloading import TooLargeError, download
from featuretap.support.errors import Hint, WeightsError
from featuretap.support.extras import check_modules
from featuretap.support.text import one_line
from featuretap.weights import hub
from featuretap.weights.packages import find_in_distribution, install_command

LARGEST = 4_000_000_000
"""Maximum bytes of a download of unknown size, which is kept in memory. Downloads from the hub go to disk."""


def find_or_download(entry: WeightsEntry, known: Sequence[WeightsEntry], mirrors: Mapping[str, str]) -> Path:
    """Return the file of a catalogue entry, downloaded into its cache if necessary.

    Downloads show a progress bar and are verified before they are kept. huggingface_hub downloads from the Hugging Face
    Hub.

    Args:
        entry: the entry of the catalogue.
        known: all entries. The error lists the ones that are available locally.
        mirrors: prefix of an address → its replacement.

    Returns:
        The path of the file.

    Raises:
        WeightsError: the file is not available and cannot be downloaded, or the download has the wrong digest or is too
            large.
    """
    path = find_local(entry)
    if path is not None:
        return path
    remote = [address for address in entry.addresses if not address.startswith(LOCAL)]
    if offline() or not remote:
        forbidden = ", and FEATURETAP_OFFLINE disables downloads" if remote else ""
        raise _not_here(entry, known, f"{entry.name!r} is not available locally{forbidden}")
    reasons = []
    for address in remote:
        try:
            return _fetch(address, entry.sha256, mirrors, _most_bytes(entry))
        # Both libraries can raise errors of their dependencies.
        except Exception as error:
            reasons.append(f"from {_mirrored(address, mirrors)}: {_reason(address, error)}")
            cause = error
    raise _not_here(entry, known, f"cannot download {entry.name!r} {', nor '.join(reasons)}") from cause


def find_or_fetch(location: str | os.PathLike[str], mirrors: Mapping[str, str]) -> Path:
    """Return the path of weights, and download them first if they have an address.

    Args:
        location: a path, which does not have to exist, or an address: "hf://owner/repository[@revision][/file]",
            "hf-hub:owner/repository", "https://host/file", "pkg://distribution/path" or "file:///path". A repository
            without a file stands for its weights and its `config.json`.
        mirrors: prefix of an address → its replacement.

    Returns:
        The path of the file.

    Raises:
        WeightsError: the address is invalid, or its file cannot be found or downloaded.
        MissingExtraError: huggingface_hub is not installed.
    """
    if not is_address(location):
        return Path(location)
    address = str(location)
    if not is_valid_address(address):
        raise WeightsError(f"{address!r} is not a valid address; write {FORMS}, or hf://owner/repository")
    if address.startswith(PACKAGE):
        return find_in_distribution(address)
    if address.startswith(FILE):
        return _path_of_file(address)
    if address.startswith((HUB, TIMM_HUB)):
        check_modules(repr(address), ("huggingface_hub",))
    elif (path := _find_at(address, "")) is not None:
        return path
    elif offline():
        raise _forbidden(address)
    try:
        return _fetch(address, "", mirrors, LARGEST)
    except TooLargeError as error:
        raise WeightsError(f"cannot download {address!r}: {error}", hint=Hint(_advice(address, ""))) from error
    except Exception as error:
        if offline():
            raise _forbidden(address) from error
        raise WeightsError(f"cannot download {address!r}: {_reason(address, error)}") from error


def find_local(entry: WeightsEntry) -> Path | None:
    """Return the file of a catalogue `entry` if it is available locally, or None. Its digest is not checked."""
    paths = (_find_at(address, entry.sha256) for address in entry.addresses)
    return next((path for path in paths if path is not None), None)


def local_address(entry: WeightsEntry, path: Path) -> str:
    """Return the `pkg://` or `file://` address of an `entry` at a local `path`, or "" for a path in a cache."""
    local = (address for address in entry.addresses if address.startswith(LOCAL))
    return next((address for address in local if _find_at(address, entry.sha256) == path), "")


def offline() -> bool:
    """Return whether `FEATURETAP_OFFLINE` is set, which disables downloads."""
    return os.environ.get("FEATURETAP_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def torch_hub_path(url: str) -> Path:
    """Return the path of the file of a `url` in the cache of torch.hub."""
    torch_hub = sys.modules.get("torch.hub")
    if torch_hub is None:
        home = os.environ.get("TORCH_HOME", f"{os.environ.get('XDG_CACHE_HOME', '~/.cache')}/torch")
        folder = Path(home, "hub").expanduser()
    else:
        # The program may have called torch.hub.set_dir.
        folder = Path(torch_hub.get_dir())
    return folder / "checkpoints" / PurePosixPath(url).name


def _find_at(address: str, digest: str) -> Path | None:
    """Return the file of an address if it is available locally."""
    if address.startswith(PACKAGE):
        try:
            return find_in_distribution(address)
        except WeightsError:
            return None
    if address.startswith(HUB):
        return hub.find_in_cache(*split_hub_address(address))
    path = _path_of_file(address) if address.startswith(FILE) else _cache_path(address, digest)
    return path if path.is_file() else None


def _most_bytes(entry: WeightsEntry) -> int:
    """Return the maximum size of an entry's file: slightly more than the stated size, which is rounded."""
    return int(1.1e6 * entry.megabytes) + 1_000_000 if entry.megabytes else LARGEST


def _fetch(address: str, digest: str, mirrors: Mapping[str, str], most: int) -> Path:
    """Download the file of an address, unless it has more than `most` bytes, and return its path."""
    if address.startswith((HUB, TIMM_HUB)):
        repository, revision, name = split_hub_address(address)
        site = _mirrored(hub.SITE, mirrors)
        if name:
            return hub.fetch_file(repository, revision, name, site=site, cached_only=offline())
        return hub.fetch_model(repository, revision, site=site, cached_only=offline())
    path = _cache_path(address, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    _download(_mirrored(address, mirrors), path, digest, most)
    return path


def _download(address: str, path: Path, digest: str, most: int) -> None:
    content = download(address, most, label=path.name)
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(digest):
        raise ValueError(f"invalid hash value (expected {digest!r}, got {found!r})")
    replace_files({path: content})


def _cache_path(url: str, digest: str) -> Path:
    # File names in torch.hub contain the digest. A name without a digest, such as "model.pth", would not be unique. If
    # the digest is unknown, the digest of the URL is used.
    name = PurePosixPath(urlsplit(url).path)
    label = digest[:8] or hashlib.sha256(url.encode()).hexdigest()[:8]
    return torch_hub_path(name.name if label in name.name else f"{name.stem or 'weights'}-{label}{name.suffix}")


def _path_of_file(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))


def _mirrored(url: str, mirrors: Mapping[str, str]) -> str:
    for beginning in sorted(mirrors, key=len, reverse=True):
        if url.startswith(beginning):
            return mirrors[beginning] + url.removeprefix(beginning)
    return url


def _reason(address: str, error: Exception) -> str:
    """Return the reason for a failed download as one line."""
    from urllib.error import HTTPError

    if isinstance(error, HTTPError):
        # The error is also the response and keeps the connection open.
        error.close()
    if address.startswith((HUB, TIMM_HUB)):
        repository, revision, _ = split_hub_address(address)
        return hub.explain(error, repository, revision)
    return one_line(str(error)) or type(error).__name__


def _advice(address: str, digest: str) -> str:
    """Return the action that makes the file of an address available."""
    if address.startswith(PACKAGE):
        return install_command(address)
    if address.startswith((HUB, TIMM_HUB)):
        repository, revision, name = split_hub_address(address)
        arguments = ("hf download", repository, name, f"--revision {revision}" if revision else "")
        return f"run '{' '.join(filter(None, arguments))}' with network access"
    return f"put the file at {_path_of_file(address) if address.startswith(FILE) else _cache_path(address, digest)}"


def _forbidden(address: str) -> WeightsError:
    problem = f"{address!r} is not available locally, and FEATURETAP_OFFLINE disables downloads"
    return WeightsError(problem, hint=Hint(_advice(address, "")))


def _not_here(entry: WeightsEntry, known: Sequence[WeightsEntry], problem: str) -> WeightsError:
    advice = ", ".join(_advice(address, entry.sha256) for address in entry.addresses)
    local = [other.name for other in known if find_local(other)]
    available = f"available locally: {', '.join(local)}" if local else "no published weights are available locally"
    return WeightsError(f"{problem}; {available}", hint=Hint(f"{advice}, or pass its path as", "pretrained="))

"""Published weights: found in the caches of torch.hub and the Hugging Face hub, or downloaded into them and checked."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from featuretap.catalogue.hookspecs import HUB, WeightsEntry
from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import Hint, WeightsError
from featuretap.support.text import one_line
from featuretap.support.version import __version__

HUB_SITE = "https://huggingface.co"

MEGABYTE = 1_000_000

TIMEOUT = 60
"""Seconds to wait for a server's answer."""


def find_or_download(entry: WeightsEntry, known: Sequence[WeightsEntry], mirrors: Mapping[str, str]) -> Path:
    """Return the file of a catalogue entry: from its cache, or downloaded into it.

    Downloads show a progress bar, and are checked before they are kept. Those from the Hugging Face hub are made by
    huggingface_hub. With `FEATURETAP_OFFLINE=1` nothing is downloaded.

    Args:
        entry: what is wanted.
        known: all entries, so that the error can name those that are on this machine.
        mirrors: beginning of an address → its replacement.

    Raises:
        WeightsError: it is in no cache and cannot be downloaded, or the download is another file.
    """
    path = _find_cached(entry)
    if path is not None:
        return path
    if offline():
        raise _not_here(
            entry, known, f"{entry.name!r} is not on this machine, and FEATURETAP_OFFLINE forbids downloads"
        )
    address = _apply_mirror(entry.url, mirrors)
    try:
        if entry.url.startswith(HUB):
            import huggingface_hub

            repository, revision, name = _hub_file(entry.url)
            site = _apply_mirror(HUB_SITE, mirrors)
            endpoint = None if site == HUB_SITE else site
            return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, endpoint=endpoint))
        path = _torch_path(entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(address, path, entry.sha256)
    except Exception as error:
        from urllib.error import HTTPError

        # Both libraries let through whatever the network's libraries below them raise.
        if isinstance(error, HTTPError):
            # It is the server's answer too, and holds the connection open.
            error.close()
        reason = one_line(str(error)) or type(error).__name__
        raise _not_here(entry, known, f"cannot download {entry.name!r} from {address}: {reason}") from error
    return path


def offline() -> bool:
    """Return whether `FEATURETAP_OFFLINE` forbids downloads."""
    return os.environ.get("FEATURETAP_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def torch_hub_path(url: str) -> Path:
    """Return where torch.hub keeps the file of a URL."""
    torch_hub = sys.modules.get("torch.hub")
    if torch_hub is None:
        home = os.environ.get("TORCH_HOME", f"{os.environ.get('XDG_CACHE_HOME', '~/.cache')}/torch")
        folder = Path(home, "hub").expanduser()
    else:
        # A program may have set another folder.
        folder = Path(torch_hub.get_dir())
    return folder / "checkpoints" / PurePosixPath(url).name


def _download(address: str, path: Path, digest: str) -> None:
    # Only downloads need what knows HTTP, and the library that draws the bar.
    from urllib.request import Request, urlopen

    from featuretap.support.progress import bar

    content = bytearray()
    request = Request(address, headers={"User-Agent": f"featuretap/{__version__}"})
    with urlopen(request, timeout=TIMEOUT) as answer:
        total = int(answer.headers.get("Content-Length") or 0)
        with bar(f"{path.name} (MB)", -(-total // MEGABYTE), shown=True) as advance:
            while chunk := answer.read(MEGABYTE):
                content += chunk
                advance()
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(digest):
        raise ValueError(f"invalid hash value (expected {digest!r}, got {found!r})")
    replace_files({path: bytes(content)})


def _find_cached(entry: WeightsEntry) -> Path | None:
    if entry.url.startswith(HUB):
        if find_spec("huggingface_hub") is None:
            return None
        import huggingface_hub

        repository, revision, name = _hub_file(entry.url)
        found = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
        return Path(found) if isinstance(found, str) else None
    path = _torch_path(entry)
    return path if path.is_file() else None


def _torch_path(entry: WeightsEntry) -> Path:
    # torch.hub's names carry the digest; one that does not could be anybody's "model.pth".
    name = PurePosixPath(urlsplit(entry.url).path)
    file = name.name if entry.sha256[:8] in name.name else f"{name.stem or 'weights'}-{entry.sha256[:8]}{name.suffix}"
    return torch_hub_path(file)


def _hub_file(url: str) -> tuple[str, str | None, str]:
    """Return repository, revision and file name of an address on the Hugging Face hub."""
    owner, repository, name = url.removeprefix(HUB).split("/", 2)
    repository, _, revision = repository.partition("@")
    return f"{owner}/{repository}", revision or None, name


def _apply_mirror(url: str, mirrors: Mapping[str, str]) -> str:
    for beginning in sorted(mirrors, key=len, reverse=True):
        if url.startswith(beginning):
            return mirrors[beginning] + url.removeprefix(beginning)
    return url


def _not_here(entry: WeightsEntry, known: Sequence[WeightsEntry], problem: str) -> WeightsError:
    if entry.url.startswith(HUB):
        repository, _, name = _hub_file(entry.url)
        by_hand = f"run 'hf download {repository} {name}' where there is a network"
    else:
        by_hand = f"put the file at {_torch_path(entry)}"
    here = [other.name for other in known if _find_cached(other)]
    there = f"on this machine are {', '.join(here)}" if here else "no published weights are on this machine"
    return WeightsError(f"{problem}; {there}", hint=Hint(f"{by_hand}, or give its path as", "pretrained="))

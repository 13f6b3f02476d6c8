"""Where the weights of a model that is being built come from, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.catalogue.request import Request, backbone_of
from featuretap.specs import BackboneSpec, ModelSpec
from featuretap.specs.description import options_in_words
from featuretap.specs.layout import NATIVE
from featuretap.specs.network_digest import network_digest
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import FeaturetapError, WeightsError
from featuretap.weights.files import sha256_of
from featuretap.weights.identification import recognised
from featuretap.weights.layouts import CLASSIFICATION, MisfitError
from featuretap.weights.reading import Checkpoint, read_checkpoint
from featuretap.weights.translation import Translated, guessed, translated

if TYPE_CHECKING:
    from featuretap.registry.registry import Registry

__all__ = ["Source", "source_at", "source_of"]


@dataclass(frozen=True)
class Origin:
    """What is known of weights: the catalogue entry or the file, and what their images and classes were, if known."""

    weights: str | Path
    preprocessing: Preprocessing | None
    classes: str | tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A file that was read, for a model.

    Args:
        checkpoint: the file.
        registry: whose catalogue and backbones the file may belong to.
        entry: the catalogue entry that it was asked for as, or is by its digest.
        keep_dtype: whether the model takes the file's types of numbers.
    """

    checkpoint: Checkpoint
    registry: Registry
    entry: WeightsEntry | None = None
    keep_dtype: bool = False

    def translated(self, spec: BackboneSpec | ModelSpec) -> Translated:
        """Rename the tensors for a backbone or a model, whatever head the file has.

        Raises:
            MisfitError: the file is in none of the layouts that are known for it.
        """
        record, backbone = self.checkpoint.record, backbone_of(spec)
        if record:
            said = record.description
            held = self._held(spec, said.name, said.head, {**said.options, "taps": said.taps}, said.num_classes)
            return translated(self.checkpoint, backbone, held, record.layout, said.head, record.norm_eps)
        if self.entry:
            entry = self.entry
            held = self._held(spec, entry.backbone, entry.head, entry.options)
            return translated(self.checkpoint, backbone, held, entry.layout, entry.head, _norm_eps(entry))
        way = guessed(self.checkpoint, spec)
        if way:
            name, found = way
            head = found.head.name if isinstance(found, ModelSpec) else CLASSIFICATION
            return translated(self.checkpoint, backbone, found, name, head)
        known = recognised(self.checkpoint.shapes, self.registry)
        if known is None or known.description.name != backbone.name:
            layouts = ", ".join([NATIVE, *backbone.layouts])
            raise MisfitError(f"{self.checkpoint.path} is in none of its layouts, which are {layouts}")
        said = known.description
        held = self._held(spec, said.name, said.head, {**said.options, "taps": said.taps}, said.num_classes)
        return translated(self.checkpoint, backbone, held, known.layout, said.head, known.norm_eps)

    def _held(
        self,
        spec: BackboneSpec | ModelSpec,
        name: str,
        head: str | None,
        options: Mapping[str, Any],
        num_classes: int | None = None,
    ) -> BackboneSpec | ModelSpec:
        """Return what gives the tensors of a file their names in another library: `spec` where it has the same head."""
        if isinstance(spec, ModelSpec) and spec.head.name == head:
            return spec
        own = self.checkpoint.record and self.checkpoint.record.layout == NATIVE
        if head in (None, CLASSIFICATION) or own:
            return backbone_of(spec)
        try:
            return self.registry.spec(name, head=head, num_classes=num_classes, **options)
        except FeaturetapError as error:
            raise MisfitError(f"{self.checkpoint.path} is of a model that is not known here: {error}") from error

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the file says it has."""
        return self.checkpoint.record.description.num_classes if self.checkpoint.record else None

    def check_network(self, request: Request) -> None:
        """Refuse tensors of the right shapes that are another network's, such as one of other activations.

        Raises:
            MisfitError: they are.
        """
        record = self.checkpoint.record
        networks = [network for network in (request.backbone, request.whole_backbone) if network]
        if record and record.network and record.network not in map(network_digest, networks):
            raise MisfitError(
                f"{self.checkpoint.path} holds another network of the same shapes, or one that has changed since"
            )

    def fits(self, words: str) -> str:
        """Return "; the file fits 'name'" for the end of a message about `words`, where it is known and is another."""
        record = self.checkpoint.record or recognised(self.checkpoint.shapes, self.registry)
        if record is None:
            return ""
        if not record.by_name:
            return f"; the file fits the BackboneSpec {record.description.name!r} that its model was built from"
        said, options = record.description, dict(record.description.options)
        if said.head not in (None, CLASSIFICATION):
            options = {"head": said.head, "taps": said.taps, **options}
        fitting = options_in_words(said.name, options)
        return f"; the file fits {fitting}" if fitting != words else ""

    def origin(self) -> Origin:
        """Check that the file is the entry it was asked for as, and return what is known of its weights.

        What the file says of itself comes first, then the catalogue, which knows a file by its digest, then a
        configuration beside it.

        Raises:
            WeightsError: it is another file.
        """
        checkpoint, entry = self.checkpoint, self.entry
        if entry:
            _verify(entry, checkpoint.path, checkpoint.digest())
        name = entry.name if entry else None
        if checkpoint.record:
            said = checkpoint.record.description
            return Origin(name or said.weights or checkpoint.path, said.preprocessing, said.classes)
        if entry:
            return Origin(entry.name, entry.preprocessing, entry.classes)
        return Origin(checkpoint.path, checkpoint.config.preprocessing, checkpoint.config.classes or "")


def _norm_eps(entry: WeightsEntry) -> dict[str, float]:
    """Return part of the model → epsilon; a classifier is one network with its backbone."""
    return dict.fromkeys(("backbone", "head") if entry.head == CLASSIFICATION else ("backbone",), entry.norm_eps)


def source_at(path: Path, registry: Registry, *, keep_dtype: bool = False) -> Source:
    """Read a file, which the catalogue may know by its digest where it says nothing of itself.

    Raises:
        WeightsError: it cannot be read, or is no sound file of weights.
    """
    checkpoint = read_checkpoint(path)
    entry = None if checkpoint.record else registry.known_as(checkpoint.digest())
    return Source(checkpoint, registry, entry, keep_dtype)


def source_of(weights: WeightsEntry | Path, registry: Registry) -> Source:
    """Read the file of a catalogue entry, downloading it where it has to be, or the file at a path.

    Raises:
        WeightsError: it cannot be had, or is no sound file of weights.
    """
    if isinstance(weights, Path):
        return source_at(weights, registry)
    from featuretap.weights.downloads import find_or_download

    path = find_or_download(weights, registry.published, registry.mirrors)
    try:
        return Source(read_checkpoint(path, hashed=True), registry, weights)
    except WeightsError:
        # That a file in a cache is another one says more than that it cannot be read.
        _verify(weights, path, sha256_of(path))
        raise


def _verify(entry: WeightsEntry, path: Path, digest: str) -> None:
    """Refuse a file that is not the entry's.

    Where the publisher states no digest, the hub's own is taken, by which huggingface_hub names what it stores.

    Raises:
        WeightsError: the digest is another.
    """
    expected = entry.sha256
    if not expected:
        stored = path.resolve().name
        expected = stored if len(stored) == len(digest) else ""
    if not digest.startswith(expected):
        # The hub's library links what it has stored; what has to go is that.
        stale = path.resolve() if path.is_symlink() else path
        raise WeightsError(
            f"{stale} is not {entry.name!r}: its SHA-256 begins with {digest[:8]}, expected {expected[:8]}; "
            "delete it to download it again"
        )

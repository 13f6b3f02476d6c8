"""Specs of exported files, resolved from their descriptions."""

from pathlib import Path
from typing import Any

from featuretap import registry
from featuretap.heads.detection import image_size
from featuretap.runtimes.graphs import Network
from featuretap.runtimes.signature import find_opener
from featuretap.specs import BackboneSpec, ModelSpec, MultiHeadSpec
from featuretap.specs.description import Description
from featuretap.specs.head import backbone_of
from featuretap.specs.network_digest import digest_before_dropout, network_digest
from featuretap.support.errors import ExportError, UnknownBackboneError, UnknownHeadError
from featuretap.support.import_strings import load
from featuretap.weights.metadata import read_record

DIGESTS = (network_digest, digest_before_dropout)


def read_file_spec(path: str, runtime: str) -> Network:
    """Return the spec of the model in an exported file.

    Args:
        path: path of the file.
        runtime: name of a runtime that opens it.

    Returns:
        The spec of the backbone, of the model with a head, or of the model with several heads.

    Raises:
        ExportError: the registry does not have the backbone or head, or has a different network of that name.
    """
    file = Path(path)
    metadata, _ = load(find_opener(registry.default, registry.default.runtime(runtime), file))(file, threads=None)
    record = read_record(file, metadata)
    assert record is not None
    try:
        spec = _spec_of(record.description)
        if record.network not in ("", *(digest(backbone_of(spec)) for digest in DIGESTS)):
            raise UnknownBackboneError(f"the registry's {record.description.name!r} is a different network")
    except (UnknownBackboneError, UnknownHeadError) as error:
        raise ExportError(
            f"cannot count the multiply-adds of {path!r} ({error.problem}); install the plugin that provides the "
            "model, or time the file with your own code"
        ) from error
    return spec


def find_resize_target(spec: Network) -> tuple[int, int] | None:
    """Return the (height, width) to which a model with a detector resizes its images; None for other models."""
    models = spec.heads.values() if isinstance(spec, MultiHeadSpec) else [spec]
    for model in models:
        if isinstance(model, ModelSpec) and model.head.images == "raw" and "size" in model.head_options:
            return image_size(model.head_options["size"])
    return None


def _spec_of(description: Description) -> Network:
    arguments: dict[str, Any] = {**description.options, "taps": description.taps}
    # A file cannot store a custom norm, and all norms have the same number of parameters.
    arguments.pop("norm", None)
    name, head = description.name, description.head
    if head is not None:
        return registry.spec(name, head=head, num_classes=description.num_classes, **arguments)
    spec = registry.spec(name, features_only=True, **arguments)
    if not description.heads:
        return spec
    assert isinstance(spec, BackboneSpec)
    heads = {name: _spec_of(head) for name, head in description.heads.items()}
    return MultiHeadSpec(spec, {name: head for name, head in heads.items() if isinstance(head, ModelSpec)})

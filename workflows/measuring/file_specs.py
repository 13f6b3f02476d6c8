"""The specs of exported files, whose descriptions state what was built."""

from typing import Any

from featuretap import registry
from featuretap.heads.detection import image_size
from featuretap.runtimes.graphs import Network
from featuretap.specs import BackboneSpec, ModelSpec, MultiHeadSpec
from featuretap.specs.description import Description
from featuretap.support.errors import ExportError, UnknownBackboneError, UnknownHeadError


def spec_of_file(path: str, description: Description) -> Network:
    """Return the spec of the model that a file describes, with any number of heads.

    Raises:
        ExportError: the registry does not have its backbone or its head.
    """
    try:
        return _spec_of(description)
    except (UnknownBackboneError, UnknownHeadError) as error:
        raise ExportError(
            f"the multiply-adds of {path!r} cannot be counted ({error.problem}); install the plugin that provides it, "
            "or measure the file by your own code"
        ) from error


def resized_to(spec: Network) -> tuple[int, int] | None:
    """Return the (height, width) to which a model with a detector resizes its images; None for other models."""
    models = spec.heads.values() if isinstance(spec, MultiHeadSpec) else [spec]
    for model in models:
        if isinstance(model, ModelSpec) and model.head.images == "raw" and "size" in model.head_options:
            return image_size(model.head_options["size"])
    return None


def _spec_of(description: Description) -> Network:
    arguments: dict[str, Any] = {**description.options, "taps": description.taps}
    # Norms have equally many parameters, and a file can only name one.
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

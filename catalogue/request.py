"""Resolve the arguments of `build` into a request. This is the only place where names are resolved."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from featuretap.catalogue.catalogue import Catalogue
from featuretap.catalogue.pretrained import WeightsSource, resolve_pretrained, with_weights_defaults
from featuretap.specs import BackboneSpec, HeadSpec, ModelSpec
from featuretap.specs.description import Description, adapt_preprocessing, format_options
from featuretap.specs.options import OPTIONS, Freezing, configure, options_of, split_options
from featuretap.specs.validation import check_option, default_of, is_whole
from featuretap.support.errors import HeadError, Hint, OptionError, SpecError


@dataclass(frozen=True)
class BuildRequest:
    """A resolved build request.

    Args:
        spec: spec of the bare backbone, or of the model of backbone and head, with options applied.
        freezing: the frozen part of the backbone.
        description: description of the model. Information about its weights is added when they are read.
        full_tail: the same backbone without `reduced_tail`, if that option is on.
        weights: source of the weights, or None for random initialization.
    """

    spec: BackboneSpec | ModelSpec
    freezing: Freezing
    description: Description
    full_tail: BackboneSpec | None = None
    weights: WeightsSource | None = None

    @property
    def backbone(self) -> BackboneSpec:
        """The spec of the backbone."""
        return self.spec.backbone if isinstance(self.spec, ModelSpec) else self.spec

    @property
    def label(self) -> str:
        """Name and options, for messages."""
        return format_options(self.description.name, self.description.options)


def resolve_request(
    catalogue: Catalogue,
    name: str | BackboneSpec,
    *,
    pretrained: bool | str | os.PathLike[str] = False,
    features_only: bool = False,
    taps: Sequence[str] | None = None,
    head: str | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> BuildRequest:
    """Resolve the arguments of `Registry.build`.

    Args:
        catalogue: the catalogue of the registry.
        name: as for `Registry.build`.
        pretrained: as for `Registry.build`.
        features_only: as for `Registry.build`.
        taps: as for `Registry.build`.
        head: as for `Registry.build`.
        num_classes: as for `Registry.build`.
        **options: as for `Registry.build`.

    Returns:
        The resolved request.

    Raises:
        HeadError: `features_only` is combined with a head or a number of classes, or the head does not fit the
            backbone.
        FeaturetapError: any error of `Registry.build`, except for weights that cannot be read or do not fit.
    """
    provided = catalogue.backbone(name)
    defaults = options_of(provided)
    weights = None
    if pretrained is not False:
        weights = resolve_pretrained(provided, pretrained, catalogue.weights_index)
        if weights and weights.entry:
            taps, head, num_classes, options = with_weights_defaults(
                weights.entry, defaults, features_only, taps, head, num_classes, options
            )
    spec: BackboneSpec | ModelSpec
    if features_only:
        for argument, value in (("head", head), ("num_classes", num_classes)):
            if value is not None:
                raise HeadError(
                    f"features_only=True returns the bare backbone of {provided.name!r}, which has no "
                    f"{argument}={value!r}; leave one of the two out"
                )
        spec, freezing = select_taps(provided, taps, options, defaults)
        backbone = spec
    else:
        head_spec = catalogue.head("classification" if head is None else head)
        spec, freezing, options = attach_head(provided, head_spec, taps, num_classes, options, defaults)
        backbone = spec.backbone
    full_tail = None
    if {**defaults, **options}.get("reduced_tail", False):
        of_backbone = {option: value for option, value in options.items() if option in defaults}
        full_tail, _ = select_taps(provided, backbone.taps, {**of_backbone, "reduced_tail": False}, defaults)
    # Keep "distribution:name", but replace an alias by the name.
    described_as = name if isinstance(name, str) and ":" in name else provided.name
    # Models are pickled with their description, so it must not contain code: the norm, and the checks of options.
    as_built = backbone if backbone.norm is None else replace(backbone, norm=None)
    description = Description(described_as, tuple(backbone.taps), options, spec=as_built)
    if isinstance(spec, ModelSpec):
        plain = {option: default_of(value) for option, value in spec.head.options.items()}
        described = replace(spec, backbone=as_built, head=replace(spec.head, options=plain))
        description = replace(description, head=spec.head.name, num_classes=spec.num_classes, spec=described)
    if isinstance(spec, ModelSpec) or backbone.in_channels != len(description.preprocessing.mean):
        description = replace(description, preprocessing=adapt_preprocessing(spec, description.preprocessing))
    return BuildRequest(spec, freezing, description, full_tail, weights)


def select_taps(
    backbone: BackboneSpec, taps: Iterable[str] | None, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[BackboneSpec, Freezing]:
    """Return a bare backbone with options applied and `taps` selected; None selects all levels.

    Args:
        backbone: spec of the backbone.
        taps: tap addresses, or None.
        options: options passed by the caller.
        defaults: options of the backbone, as returned by `options_of`.

    Returns:
        The spec, and the frozen part of the backbone.
    """
    of_backbone, _ = split_options(backbone, None, options, defaults)
    spec, freezing = configure(backbone, {**defaults, **of_backbone})
    return (spec if taps is None else spec.with_taps(taps)), freezing


def attach_head(
    backbone: BackboneSpec,
    head: HeadSpec,
    taps: Iterable[str] | None,
    num_classes: int | None,
    options: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> tuple[ModelSpec, Freezing, dict[str, Any]]:
    """Return the spec of the model of backbone and head.

    Args:
        backbone: spec of the backbone.
        head: spec of the head.
        taps: taps that the head reads; None for its default.
        num_classes: number of classes; None for the head's default.
        options: options of backbone and head passed by the caller.
        defaults: options of the backbone, as returned by `options_of`.

    Returns:
        The spec, the frozen part of the backbone, and the options including those that the head sets.

    Raises:
        HeadError: the backbone does not have the taps that the head reads, or the head cannot read the taps.
        OptionError: the number of classes or an option is invalid.
        SpecError: head and backbone have an option with the same name.
    """
    of_backbone, of_head = split_options(backbone, head, options, defaults)
    shared = sorted(set(head.options) & set(defaults))
    if shared:
        raise SpecError(
            f"head {head.name!r} and {backbone.name!r} both have an option {shared[0]!r}; rename the head's"
        )
    values = {**head.options, **of_head}
    for name, option in head.allowed.items():
        check_option(f"head {head.name!r}", name, option, values[name])
    values = {name: _as_tuples(value) for name, value in values.items()}
    # A default set by the head does not override a default that the spec or variant has changed.
    set_by_head = {
        name: value
        for name, value in head.backbone_options.items()
        if name in defaults and (name not in OPTIONS or defaults[name] == OPTIONS[name].default)
    }
    spec, freezing = configure(backbone, {**defaults, **set_by_head, **of_backbone})
    levels = spec.with_taps(spec.levels).taps if spec.levels else {}
    reads = head.reads_with(values)
    spec = spec.with_taps(_select_reads(head, spec, reads) if taps is None else taps)
    if head.consecutive:
        _check_consecutive(head, spec)
    elif len(spec.taps) != len(reads):
        count = len(reads)
        hint = Hint(f"give {count}")
        if head.task == "classification":
            hint = Hint(f"give {count}, or for feature maps pass", "features_only=True")
        raise HeadError(
            f"head {head.name!r} reads {count} {'tap' if count == 1 else 'taps'}, but taps has {len(spec.taps)}: "
            f"{', '.join(spec.taps)}",
            hint=hint,
        )
    model = ModelSpec(spec, head, _check_classes(head, num_classes), values, levels)
    if head.check:
        model.call(head.check)
    # Record the options that the head sets, because another head or none would set other values.
    described = {name: values.get(name, value) for name, value in {**set_by_head, **options}.items()}
    return model, freezing, described


def _as_tuples(value: Any) -> Any:
    """Return a value with lists as tuples: immutable, and equal whether it came from a file or from code."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


def _select_reads(head: HeadSpec, spec: BackboneSpec, reads: Iterable[str | tuple[str, ...]]) -> list[str]:
    alternatives = [(choice,) if isinstance(choice, str) else choice for choice in reads]
    found = [next((address for address in choice if address in spec.addresses), None) for choice in alternatives]
    selected = [address for address in found if address is not None]
    if len(selected) < len(found):
        wanted = ", ".join(" or ".join(choice) for choice in alternatives)
        available = f"ends at {spec.levels[-1]}" if spec.levels else f"has {', '.join(spec.addresses)}"
        raise HeadError(f"head {head.name!r} reads {wanted}, but {spec.name!r} {available}")
    return selected


def _check_consecutive(head: HeadSpec, spec: BackboneSpec) -> None:
    for (before, fine), (after, coarse) in pairwise(spec.taps.items()):
        if coarse.stride not in (fine.stride, 2 * fine.stride):
            raise HeadError(
                f"head {head.name!r} reads consecutive levels, each with the stride of the level before it or twice "
                f"that, but {after} (stride {coarse.stride}) follows {before} (stride {fine.stride})"
            )


def _check_classes(head: HeadSpec, num_classes: int | None) -> int | None:
    """Return the number of classes of a head, or None for a head without classes."""
    if head.num_classes is None:
        if num_classes is not None:
            raise OptionError(f"head {head.name!r} has no classes; omit num_classes={num_classes!r}")
        return None
    classes = head.num_classes if num_classes is None else num_classes
    if not is_whole(classes, head.min_classes):
        allowed = f"an integer of at least {head.min_classes}, counting the background"
        if head.min_classes < 2:
            allowed = f"a positive integer{'' if head.min_classes else ', or 0 for pooled features'}"
        raise OptionError(f"head {head.name!r} cannot take num_classes={classes!r}; it must be {allowed}")
    return classes

"""Arguments of `build` → a resolved request. Names are resolved here, and once."""

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
from featuretap.support.errors import HeadError, OptionError, SpecError


@dataclass(frozen=True)
class BuildRequest:
    """A resolved build request.

    Args:
        spec: of a bare backbone or of a model with a head, options applied.
        freezing: the part of the backbone that does not train.
        description: of the model; what is known of its weights is added when they are read.
        full_tail: the same backbone without `reduced_tail`, if that option is on.
        weights: where the weights come from; None for random initialisation.
    """

    spec: BackboneSpec | ModelSpec
    freezing: Freezing
    description: Description
    full_tail: BackboneSpec | None = None
    weights: WeightsSource | None = None

    @property
    def backbone(self) -> BackboneSpec:
        """The backbone's spec."""
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

    Raises:
        HeadError: `features_only` with a head or a number of classes, or a head that does not fit the backbone.
        FeaturetapError: as `Registry.build`, except for weights that cannot be read or do not fit.
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
    # A name with its distribution is kept; an alias is replaced by the name that it stands for.
    described_as = name if isinstance(name, str) and ":" in name else provided.name
    # The norm and the checks of options are code, which a description cannot hold: models are pickled with it.
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
    """Return a bare backbone with its options applied and its taps selected; None selects all levels."""
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
    """Return backbone and head as one spec, and the options with those of the backbone that the head sets.

    Raises:
        HeadError: the backbone lacks what the head reads, or the head cannot read the taps.
        OptionError: a number of classes, or a value of an option, that the head cannot take.
        SpecError: an option of the head has the name of one of the backbone's.
    """
    of_backbone, of_head = split_options(backbone, head, options, defaults)
    shared = sorted(set(head.options) & set(defaults))
    if shared:
        raise SpecError(f"head {head.name!r} has an option {shared[0]!r}, which {backbone.name!r} has too; rename it")
    values = {**head.options, **of_head}
    for name, option in head.allowed.items():
        check_option(f"head {head.name!r}", name, option, values[name])
    values = {name: _as_tuples(value) for name, value in values.items()}
    # A default of the head's does not replace one that the caller's spec or variant has changed.
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
        raise HeadError(
            f"head {head.name!r} reads {len(reads)} of the maps, and taps names {len(spec.taps)}: "
            f"{', '.join(spec.taps)}"
        )
    model = ModelSpec(spec, head, _check_classes(head, num_classes), values, levels)
    if head.check:
        model.call(head.check)
    # They are described, since under another head, or under none, they would be others.
    described = {name: values.get(name, value) for name, value in {**set_by_head, **options}.items()}
    return model, freezing, described


def _as_tuples(value: Any) -> Any:
    """Return a value that cannot be changed, and that is the same whether it came from a file or from code."""
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
                f"head {head.name!r} reads consecutive levels, each of the stride before or twice that, but {after} of "
                f"stride {coarse.stride} follows {before} of stride {fine.stride}"
            )


def _check_classes(head: HeadSpec, num_classes: int | None) -> int | None:
    """Return the number of classes of a head; None for a head without classes."""
    if head.num_classes is None:
        if num_classes is not None:
            raise OptionError(f"head {head.name!r} has no classes; leave num_classes={num_classes!r} out")
        return None
    classes = head.num_classes if num_classes is None else num_classes
    if not is_whole(classes, head.min_classes):
        allowed = f"a whole number from {head.min_classes} up, the background being one of the classes"
        if head.min_classes < 2:
            allowed = f"a positive whole number{'' if head.min_classes else ', or 0 for pooled features'}"
        raise OptionError(f"head {head.name!r} cannot have num_classes={classes!r}; it is {allowed}")
    return classes

"""The model of a run and its task."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from featuretap import registry
from featuretap.catalogue.multi_head_request import describe_heads
from featuretap.catalogue.pretrained import WeightsSource
from featuretap.models.built import Built, description_of
from featuretap.specs import BackboneSpec, HeadSpec, ModelSpec, MultiHeadSpec
from featuretap.specs.description import Description
from featuretap.specs.options import options_of
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import DataError, HeadError, Hint, OptionError, TrainingError, WeightsError
from featuretap.support.text import first_few
from featuretap.weights.metadata import Record
from featuretap.weights.opening import open_checkpoint
from featuretap.weights.reading import Checkpoint
from featuretap.weights.requests import arguments_of, record_of
from featuretap.workflows.datasets.data_set import DataSet, with_classes
from featuretap.workflows.datasets.formats import open_data, recognize_task
from featuretap.workflows.datasets.recognition import DEFAULT_HEADS
from featuretap.workflows.training.configuration import Configuration, of_head
from featuretap.workflows.training.tasks import classification, detection, segmentation
from featuretap.workflows.training.tasks.task import Task


def resolve_models(configuration: Configuration) -> tuple[Configuration, dict[str, ModelSpec]]:
    """Resolve backbone, heads and options of a run.

    Args:
        configuration: settings of the run.

    Returns:
        The configuration with these settings filled in, and name of the head → spec (without the data's classes). With
        a single data set, the name is "".

    Raises:
        FeaturetapError: as in `resolve_model`.
        HeadError: the heads contradict each other.
    """
    if isinstance(configuration.data, str):
        resolved, single = resolve_model(configuration)
        return resolved, {"": single}
    heads: dict[str, str] = {}
    options = dict(configuration.options)
    _check_options(options)
    for name in configuration.data:
        own = of_head(configuration, name)
        head = _trainable_head(own.head if isinstance(own.head, str) else _default_head(own, None))
        heads[name] = head.name
        if configuration.size is not None and head.task == "detection":
            options[name] = {**options.get(name, {}), **detection.size_options(head, configuration.size)}
    spec = registry.spec(configuration.backbone or "", head=heads, **options)
    assert isinstance(spec, MultiHeadSpec)
    _check_backbone(configuration, configuration.backbone or "", spec.backbone)
    return replace(configuration, head=heads, options=options), dict(spec.heads)


def resolve_model(configuration: Configuration) -> tuple[Configuration, ModelSpec]:
    """Resolve backbone, head and options of a run with one data set.

    Args:
        configuration: settings of the run.

    Returns:
        The configuration with these settings filled in, and the spec of the model (without the data's classes).

    Raises:
        DataError: the task cannot be detected from the data.
        OptionError: a training setting is among the model options.
        TrainingError: the model does not take 1 or 3 image channels, or the backbone does not have the level to freeze.
    """
    saved = None if configuration.backbone else _read_record(configuration.weights or "")
    assert isinstance(configuration.head, str | None)
    head = _trainable_head(configuration.head or _default_head(configuration, saved))
    name, options = configuration.backbone or "", dict(configuration.options)
    _check_options(options)
    if saved is not None:
        name, options = saved.record.description.name, {**_saved_options(saved, head), **options}
    if configuration.size is not None and head.task == "detection":
        options |= detection.size_options(head, configuration.size)
    spec = registry.spec(name, head=head.name, taps=configuration.taps, **options)
    assert isinstance(spec, ModelSpec)
    _check_backbone(configuration, name, spec.backbone)
    return replace(configuration, backbone=name, head=head.name, options=options), spec


def _check_options(options: Mapping[str, Any]) -> None:
    if "freeze" in options:
        raise OptionError(
            "freeze is a training setting, and as an option it would be saved in the weights files; set freeze outside "
            "the options"
        )


def _check_backbone(configuration: Configuration, name: str, spec: BackboneSpec) -> None:
    """Check that the backbone takes 1 or 3 image channels and has the level to freeze."""
    if spec.in_channels not in (1, 3):
        raise TrainingError(
            f"{name!r} with in_channels={spec.in_channels} cannot be trained on images; set in_channels to 1 or 3"
        )
    levels = spec.levels
    if configuration.freeze not in (None, *levels):
        raise TrainingError(
            f"{spec.name!r} has no level {configuration.freeze} to freeze; its levels are {', '.join(levels)}"
        )


class _Saved(NamedTuple):
    """A checkpoint and its record (description, layout)."""

    checkpoint: Checkpoint
    record: Record


def _read_record(weights: str) -> _Saved:
    checkpoint = open_checkpoint(WeightsSource(path=weights), registry.default)
    record = record_of(checkpoint, registry.default)
    if not record.by_name:
        raise WeightsError(
            f"{str(checkpoint.path)!r} was saved from the BackboneSpec {record.description.name!r}, which has no name "
            "in the registry; only registered backbones can be trained"
        )
    return _Saved(checkpoint, record)


def _default_head(configuration: Configuration, saved: _Saved | None) -> str:
    """Return the head of the checkpoint if its task matches the data, or else the default head of the data's task."""
    assert isinstance(configuration.data, str)
    task = recognize_task(configuration.data, configuration.format)
    head = saved.record.description.head if saved else None
    return head if head is not None and registry.default.head(head).task == task else DEFAULT_HEADS[task]


def _saved_options(saved: _Saved, head: HeadSpec) -> dict[str, Any]:
    """Return the options in a checkpoint's description, without the options of a head that is replaced."""
    description = saved.record.description
    options = arguments_of(saved.record, saved.checkpoint, {})
    for argument in ("taps", "head", "num_classes", "features_only"):
        options.pop(argument, None)
    if description.head not in (None, head.name):
        own = {*options_of(registry.default.backbone(description.name)), "norm"}
        options = {option: value for option, value in options.items() if option in own}
    return options


def _trainable_head(name: str) -> HeadSpec:
    """Return the head named `name`, or raise HeadError if it has no task."""
    head = registry.default.head(name)
    if not head.task:
        trainable = [other for other in registry.list_heads() if registry.default.head(other).task]
        raise HeadError(f"head {name!r} has no task to train or evaluate; choose one of {', '.join(trainable)}")
    return head


def spec_of(model: nn.Module, origin: str) -> ModelSpec:
    """Return the spec of a model to evaluate.

    Args:
        model: the model.
        origin: name of the model in error messages.

    Returns:
        The spec.

    Raises:
        HeadError: the model has no head, several heads, or a head without a task.
    """
    description = description_of(model, "evaluation reads")
    if description.heads:
        raise HeadError(
            f"{origin} has several heads ({', '.join(description.heads)}), but only one can be evaluated at a time",
            hint=Hint("load one of them with", f"head={next(iter(description.heads))!r}"),
        )
    if description.head is None:
        raise HeadError(f"{origin} is a backbone without a head; only models with a head can be evaluated")
    head, classes = _trainable_head(description.head).name, description.num_classes
    backbone = description.backbone or description.name
    spec = registry.spec(backbone, head=head, taps=description.taps, num_classes=classes)
    assert isinstance(spec, ModelSpec)
    return spec


def first_label(head: HeadSpec) -> int:
    """Return a head's label for the first class of a data set: 1 for detectors with a background, else 0."""
    return 1 if head.task == "detection" and head.min_classes == 2 else 0


def open_model_data(
    spec: ModelSpec,
    source: str,
    val_fraction: float,
    seed: int,
    download_to: str | Path | None,
    data_format: str | None,
    images_root: str | Path | None,
    *,
    known: tuple[str, ...] | None = None,
) -> DataSet:
    """Open a data set for the task of a model, with object masks if the model predicts them.

    Args:
        spec: the model.
        source: the data set, in any form that training accepts.
        val_fraction: fraction held out for validation, if the data has no validation set.
        seed: seed of that split.
        download_to: folder for downloaded data sets.
        data_format: format of a folder, or None to detect it.
        images_root: folder outside the data set that annotations may load images from.
        known: classes of the model to evaluate, or None for training.

    Returns:
        The data set.
    """
    task: Any = spec.head.task
    folder = Path(download_to) if download_to else None
    masks = "masks" in spec.outputs(1, 1)
    return open_data(
        source,
        task,
        val_fraction=val_fraction,
        seed=seed,
        download_to=folder,
        masks=masks,
        data_format=data_format,
        known=known,
        images_root=Path(images_root).expanduser() if images_root else None,
    )


def with_model_classes(data: DataSet, description: Description, origin: str, first: int) -> DataSet:
    """Return a data set relabeled with the classes of a model. The data may contain only some of them.

    Args:
        data: data set to evaluate the model on.
        description: description of the model.
        origin: name of the model in error messages.
        first: the model's label for the first class of a data set.

    Returns:
        The relabeled data set.

    Raises:
        DataError: the data has classes that the model does not have.
    """
    if isinstance(description.classes, str):
        known = (description.num_classes or 0) - first
        if len(data.classes) != known:
            raise DataError(
                f"the data has {len(data.classes)} classes, but {origin} has {known}; evaluate it on data with the "
                "classes of the model"
            )
        return data
    classes = tuple(description.classes[first:])
    unknown = [repr(name) for name in data.classes if name not in classes]
    if unknown:
        raise DataError(
            f"the data has classes that {origin} does not have: {first_few(unknown, 5)}; name the classes as in "
            "training"
        )
    return with_classes(data, classes)


def build_model(configuration: Configuration, specs: Mapping[str, ModelSpec], data: Mapping[str, DataSet]) -> Built:
    """Build the model of a run in training mode, described with the data's classes and the run's preprocessing.

    Args:
        configuration: resolved settings of the run.
        specs: name of the head → spec, as `resolve_models` returns them.
        data: name of the head → data set.

    Returns:
        The model.
    """
    classes = {name: (*("background",) * first_label(spec.head), *data[name].classes) for name, spec in specs.items()}
    if "" in specs:
        arguments = {"taps": configuration.taps, "num_classes": len(classes[""]), **configuration.options}
    else:
        counts = {name: {"num_classes": len(own)} for name, own in classes.items()}
        arguments = {**configuration.options}
        arguments |= {name: {**arguments.get(name, {}), **count} for name, count in counts.items()}
    model = registry.build(
        configuration.backbone or "",
        head=configuration.head,
        pretrained=configuration.weights or configuration.pretrained,
        **arguments,
    )

    def describe(description: Description, name: str) -> Description:
        preprocessing = _preprocessing(description.preprocessing, specs[name].head, configuration.size)
        return replace(description, classes=classes[name], preprocessing=preprocessing)

    if "" in specs:
        model.description = describe(model.description, "")
    else:
        heads = {name: describe(description, name) for name, description in model.description.heads.items()}
        model.description = describe_heads(model.description, heads)
    return model


def select_model(model: nn.Module, name: str) -> nn.Module:
    """Return the model of the head `name`, or the model itself if the name is "" (a single head)."""
    return registry.select_head(model, name) if name else model


def as_trained(description: Description) -> Description:
    """Return a description without the origin of the weights, which training changes."""
    heads = {name: as_trained(own) for name, own in description.heads.items()}
    return replace(description, weights=None, random_head=False, heads=heads)


def _preprocessing(preprocessing: Preprocessing, head: HeadSpec, size: int | None) -> Preprocessing:
    """Return the preprocessing of a head, with the run's setting `size`."""
    if size is not None and head.task == "classification":
        return classification.preprocessing_of_size(preprocessing, size)
    if size is not None and head.task == "segmentation":
        return replace(preprocessing, resize=size)
    return preprocessing


def make_task(
    spec: ModelSpec, preprocessing: Preprocessing, classes: tuple[str, ...], configuration: Configuration | None = None
) -> Task:
    """Return the task of a model.

    Args:
        spec: the model.
        preprocessing: preprocessing of the model.
        classes: classes of the data set.
        configuration: settings of the run, for training; not needed for evaluation.

    Returns:
        The task.
    """
    settings: dict[str, Any] = {}
    if configuration is not None:
        settings = {name: getattr(configuration, name) for name in ("flip", "crop_scale", "augment", "label_smoothing")}
    if spec.head.task == "classification":
        return classification.ClassificationTask(classes, preprocessing, **settings)
    if spec.head.task == "segmentation":
        return segmentation.SegmentationTask(classes, preprocessing, **settings)
    masks = "masks" in spec.outputs(1, 1)
    return detection.DetectionTask(classes, preprocessing, **settings, first_label=first_label(spec.head), masks=masks)

"""The model of a run, and the task that it is trained for."""

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
from featuretap.workflows.datasets.formats import open_data, recognise_task
from featuretap.workflows.datasets.recognition import DEFAULT_HEADS
from featuretap.workflows.training.configuration import Configuration, of_head
from featuretap.workflows.training.tasks import classification, detection, segmentation
from featuretap.workflows.training.tasks.task import Task


def resolve_models(configuration: Configuration) -> tuple[Configuration, dict[str, ModelSpec]]:
    """Return the configuration with all that decides on its model, and the name of each head → spec, without classes.

    The name of the only head of a run with one data set is "".

    Raises:
        FeaturetapError: as `resolve_model`.
        HeadError: heads that contradict each other.
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
    """Return the configuration with the head, backbone and all options of its model, and its spec, without classes.

    Raises:
        DataError: the data does not tell which head is needed.
        OptionError: an option of training that is not one of a model.
        TrainingError: the model's images have other channels than images that can be read, or the backbone lacks the
            level to freeze through.
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
            "freeze among the options would be saved in the weights files of the run; give freeze as a setting"
        )


def _check_backbone(configuration: Configuration, name: str, spec: BackboneSpec) -> None:
    """Refuse a backbone whose images cannot be read, or that lacks the level to freeze through."""
    if spec.in_channels not in (1, 3):
        raise TrainingError(
            f"{name!r} with in_channels={spec.in_channels} cannot be trained on images, which have 1 or 3"
        )
    levels = spec.levels
    if configuration.freeze not in (None, *levels):
        raise TrainingError(
            f"cannot freeze through {configuration.freeze}: {spec.name!r} has the levels {', '.join(levels)}"
        )


class _Saved(NamedTuple):
    """A checkpoint, and what it records of its model."""

    checkpoint: Checkpoint
    record: Record


def _read_record(weights: str) -> _Saved:
    checkpoint = open_checkpoint(WeightsSource(path=weights), registry.default)
    record = record_of(checkpoint, registry.default)
    if not record.by_name:
        raise WeightsError(
            f"{str(checkpoint.path)!r} was saved from a BackboneSpec {record.description.name!r}, and only backbones "
            "that have a name in the registry can be trained by settings"
        )
    return _Saved(checkpoint, record)


def _default_head(configuration: Configuration, saved: _Saved | None) -> str:
    """Return the head that a checkpoint has, if it is for the data's task, or the task's default."""
    assert isinstance(configuration.data, str)
    task = recognise_task(configuration.data, configuration.format)
    head = saved.record.description.head if saved else None
    return head if head is not None and registry.default.head(head).task == task else DEFAULT_HEADS[task]


def _saved_options(saved: _Saved, head: HeadSpec) -> dict[str, Any]:
    """Return the options in a checkpoint's description, without those of another head."""
    description = saved.record.description
    options = arguments_of(saved.record, saved.checkpoint, {})
    for argument in ("taps", "head", "num_classes", "features_only"):
        options.pop(argument, None)
    if description.head not in (None, head.name):
        own = {*options_of(registry.default.backbone(description.name)), "norm"}
        options = {option: value for option, value in options.items() if option in own}
    return options


def _trainable_head(name: str) -> HeadSpec:
    """Return a head that has a task, or raise a HeadError."""
    head = registry.default.head(name)
    if not head.task:
        trainable = [other for other in registry.list_heads() if registry.default.head(other).task]
        raise HeadError(f"head {name!r} has no task to train or evaluate; choose {', '.join(trainable)}")
    return head


def spec_of(model: nn.Module, origin: str) -> ModelSpec:
    """Return the spec of a model that is to be evaluated; messages call the model by its origin.

    Raises:
        HeadError: it has no head, or one without a task.
    """
    description = description_of(model, "evaluation reads")
    if description.heads:
        raise HeadError(
            f"{origin} has several heads ({', '.join(description.heads)}), and one is evaluated at a time",
            hint=Hint("load one of them with", f"head={next(iter(description.heads))!r}"),
        )
    if description.head is None:
        raise HeadError(f"{origin} is a bare backbone, whose outputs cannot be evaluated; give a model with a head")
    head, classes = _trainable_head(description.head).name, description.num_classes
    backbone = description.backbone or description.name
    spec = registry.spec(backbone, head=head, taps=description.taps, num_classes=classes)
    assert isinstance(spec, ModelSpec)
    return spec


def first_label(head: HeadSpec) -> int:
    """Return a head's label of the first class of a data set: 1 for detectors with a background, else 0."""
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
    """Open a data set for a model's task, with masks where the model predicts them; see `open_data`."""
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
    """Return the data with the classes of a model, of which it may lack some.

    Args:
        data: to evaluate the model on.
        description: of the model.
        origin: what messages call the model.
        first: the model's label of the first class of a data set.

    Raises:
        DataError: it has other classes.
    """
    if isinstance(description.classes, str):
        known = (description.num_classes or 0) - first
        if len(data.classes) != known:
            raise DataError(
                f"the data has {len(data.classes)} classes, and {origin} {known}; evaluate it on data of its own "
                "classes"
            )
        return data
    classes = tuple(description.classes[first:])
    unknown = [repr(name) for name in data.classes if name not in classes]
    if unknown:
        raise DataError(
            f"the data has classes that {origin} has not: {first_few(unknown, 5)}; name the classes as in training"
        )
    return with_classes(data, classes)


def build_model(configuration: Configuration, specs: Mapping[str, ModelSpec], data: Mapping[str, DataSet]) -> Built:
    """Return the model of a run, in training mode, described with the data's classes and the run's preprocessing."""
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
    """Return the model of a head by its name, and the model itself for the name "" of the only one."""
    return registry.select_head(model, name) if name else model


def as_trained(description: Description) -> Description:
    """Return a description without the published weights, which a model no longer has once it is trained."""
    heads = {name: as_trained(own) for name, own in description.heads.items()}
    return replace(description, weights=None, random_head=False, heads=heads)


def _preprocessing(preprocessing: Preprocessing, head: HeadSpec, size: int | None) -> Preprocessing:
    """Return a head's preprocessing with the size that a run sets."""
    if size is not None and head.task == "classification":
        return classification.preprocessing_of_size(preprocessing, size)
    if size is not None and head.task == "segmentation":
        return replace(preprocessing, resize=size)
    return preprocessing


def make_task(
    spec: ModelSpec, preprocessing: Preprocessing, classes: tuple[str, ...], configuration: Configuration | None = None
) -> Task:
    """Return the task of a model on a data set's classes; training needs the run's configuration, evaluation none."""
    settings: dict[str, Any] = {}
    if configuration is not None:
        settings = {name: getattr(configuration, name) for name in ("flip", "crop_scale", "augment", "label_smoothing")}
    if spec.head.task == "classification":
        return classification.ClassificationTask(classes, preprocessing, **settings)
    if spec.head.task == "segmentation":
        return segmentation.SegmentationTask(classes, preprocessing, **settings)
    masks = "masks" in spec.outputs(1, 1)
    return detection.DetectionTask(classes, preprocessing, **settings, first_label=first_label(spec.head), masks=masks)

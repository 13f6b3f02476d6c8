"""The model of a run, and the task that it is trained for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from featuretap import registry
from featuretap.specs import HeadSpec, ModelSpec
from featuretap.specs.description import Description
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import HeadError, OptionError, TrainingError
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.training.configuration import Configuration
from featuretap.workflows.training.tasks import classification, detection, segmentation
from featuretap.workflows.training.tasks.task import Augmentation, Task

__all__ = ["build_model", "described", "finds_masks", "first_label", "head_of", "make_task", "trainable_head"]


def trainable_head(name: str) -> HeadSpec:
    """Return a head that there is a task for.

    Raises:
        UnknownHeadError: no head has this name.
        HeadError: the head makes something that is not trained here.
    """
    head = registry.default.head(name)
    if not head.task:
        able = [other for other in registry.list_heads() if registry.default.head(other).task]
        raise HeadError(f"head {name!r} has no task that it could be trained or judged for; choose {', '.join(able)}")
    return head


def head_of(model: nn.Module, origin: str) -> HeadSpec:
    """Return the head of a model that is to be judged.

    Args:
        model: of featuretap.
        origin: what messages call it.

    Raises:
        HeadError: it has no head, or one without a task.
    """
    said = model.description
    assert isinstance(said, Description)
    if said.head is None:
        raise HeadError(
            f"{origin} is a bare backbone, and nothing that a backbone returns can be judged; give a model with a head"
        )
    return trainable_head(said.head)


def first_label(head: HeadSpec) -> int:
    """Return the number that a head gives to the first class of a data set: 1 for detectors with a background."""
    return 1 if head.task == "detection" and head.min_classes == 2 else 0


def finds_masks(model: nn.Module) -> bool:
    """Say whether a detector finds masks beside boxes."""
    said = model.description
    assert isinstance(said, Description)
    spec = registry.spec(said.backbone or said.name, head=said.head, taps=said.taps, num_classes=said.num_classes)
    assert isinstance(spec, ModelSpec)
    return "masks" in spec.outputs(1, 1)


def described(configuration: Configuration, head: HeadSpec) -> tuple[str, dict[str, Any], ModelSpec]:
    """Return the backbone's name, the options, and the spec of a run's model, but for its number of classes.

    Raises:
        OptionError: options of training that are no options of a model.
        FeaturetapError: as `registry.spec` and `registry.load` do.
    """
    options = dict(configuration.options)
    if "freeze" in options:
        raise OptionError(
            "freeze among the options would stay in the files of the run; give freeze as a setting of its own"
        )
    name = configuration.backbone
    if name is None:
        assert configuration.weights is not None
        said = _said(configuration.weights, head)
        name, options = said.name, {**said.options, **options}
    if configuration.size is not None and head.task == "detection":
        options |= detection.sized(head, configuration.size)
    spec = registry.spec(name, head=head.name, taps=configuration.taps, **options)
    assert isinstance(spec, ModelSpec)
    return name, options, spec


def build_model(configuration: Configuration, data: DataSet) -> nn.Module:
    """Return the model of a run, in training mode, described with the data's classes and the run's preprocessing.

    Args:
        configuration: of the run.
        data: whose classes it tells apart.

    Raises:
        TrainingError: the data is for images of other channels than can be read.
        FeaturetapError: as `registry.build` does.
    """
    head = trainable_head(configuration.head)
    name, options, spec = described(configuration, head)
    if spec.backbone.in_channels not in (1, 3):
        raise TrainingError(
            f"{name!r} with in_channels={spec.backbone.in_channels} cannot learn from images, which have 1 or 3"
        )
    background = ("background",) * first_label(head)
    classes = (*background, *data.classes)
    model = registry.build(
        name,
        head=head.name,
        taps=configuration.taps,
        num_classes=len(classes),
        pretrained=configuration.weights or configuration.pretrained,
        **options,
    )
    said = model.description
    assert isinstance(said, Description)
    preprocessing = said.preprocessing
    if configuration.size is not None:
        preprocessing = _sized(preprocessing, head, configuration.size)
    # What will be trained is no longer what was published.
    model.description = replace(said, classes=classes, preprocessing=preprocessing, weights=None, fresh=False)
    return model


def make_task(
    head: HeadSpec,
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
    augmentation: Augmentation,
    label_smoothing: float,
    *,
    masks: bool,
) -> Task:
    """Return the task of a head.

    Args:
        head: of the model.
        preprocessing: of the model.
        classes: the data set's.
        augmentation: how training images vary.
        label_smoothing: of the loss, for tasks that have it.
        masks: whether a detector finds masks too.
    """
    if head.task == "classification":
        return classification.ClassificationTask(classes, preprocessing, augmentation, label_smoothing)
    if head.task == "segmentation":
        return segmentation.SegmentationTask(classes, preprocessing, augmentation, label_smoothing)
    return detection.DetectionTask(classes, first_label(head), preprocessing, augmentation, masks)


def _said(weights: str, head: HeadSpec) -> Description:
    """Return what a file says of its model, the options of another head left out."""
    said = registry.load(Path(weights)).description
    assert isinstance(said, Description)
    if said.head != head.name and said.head is not None:
        said = registry.load(Path(weights), features_only=True).description
        assert isinstance(said, Description)
    return said


def _sized(preprocessing: Preprocessing, head: HeadSpec, size: int) -> Preprocessing:
    if head.task == "classification":
        return classification.prepared(preprocessing, size)
    return replace(preprocessing, resize=size) if head.task == "segmentation" else preprocessing

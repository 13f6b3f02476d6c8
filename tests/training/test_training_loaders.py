"""Training batches have one size, each validation image is used exactly once, and transforms can be pickled."""

import pickle
from typing import Any

import pytest
import torch
from support.training_runs import coloured_folder

from featuretap.specs.preprocessing import Preprocessing
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.formats import open_data
from featuretap.workflows.training.loop import make_loader
from featuretap.workflows.training.tasks.classification import ClassificationTask, preprocessing_of_size


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return open_data(str(coloured_folder(tmp_path_factory.mktemp("data") / "colours", 11)), "classification")


def task(data: DataSet, **varied: Any) -> ClassificationTask:
    return ClassificationTask(data.classes, preprocessing_of_size(Preprocessing(), 32), **varied, label_smoothing=0.1)


@pytest.mark.parametrize("batch_size", [4, 5, 27])
def test_training_batches_have_one_size(data: DataSet, batch_size: int) -> None:
    batches = [*make_loader(task(data), data.train, batch_size, 0, training=True)]
    assert len(batches) == 27 // batch_size
    for images, labels in batches:
        assert images.shape == (batch_size, 3, 32, 32)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_every_image_is_evaluated_by_one_process(data: DataSet, processes: int) -> None:
    whole = torch.cat([images for images, _ in make_loader(task(data), data.val, 4, 0, training=False)])
    shares = [
        [
            image
            for images, _ in make_loader(task(data), data.val[rank::processes], 4, 0, training=False)
            for image in images
        ]
        for rank in range(processes)
    ]
    assert sum(map(len, shares)) == len(data.val) == 6
    for place, image in enumerate(whole):
        assert torch.equal(shares[place % processes][place // processes], image)


@pytest.mark.parametrize("policy", ["none", "trivial", "rand"])
@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_transforms_with_every_augmentation_can_be_pickled(
    data: DataSet, policy: Any, scale: float, channels: int
) -> None:
    preprocessing = preprocessing_of_size(Preprocessing().for_channels(channels), 20)
    made = ClassificationTask(data.classes, preprocessing, 0.5, scale, policy, 0.0)
    image, label = data.train[0].read()
    for transform in (made.training_transform(), made.evaluation_transform()):
        pixels, same = pickle.loads(pickle.dumps(transform))(image, label)
        assert (tuple(pixels.shape), same) == ((channels, 20, 20), label)


def test_training_images_vary_and_evaluation_images_do_not(data: DataSet) -> None:
    image, label = data.train[0].read()
    made = task(data)
    learned = [made.training_transform()(image, label)[0] for _ in range(4)]
    judged = [made.evaluation_transform()(image, label)[0] for _ in range(2)]
    assert len({tensor.sum().item() for tensor in learned}) == 4
    assert torch.equal(*judged)


def test_images_are_flipped_with_the_given_probability(data: DataSet) -> None:
    image, label = data.train[0].read()
    plain, mirrored = (
        task(data, crop_scale=1.0, flip=flip).training_transform()(image, label)[0] for flip in (0.0, 1.0)
    )
    assert torch.equal(plain, mirrored.flip(-1))
    assert not torch.equal(plain, mirrored)
    assert torch.equal(plain, task(data).evaluation_transform()(image, label)[0])

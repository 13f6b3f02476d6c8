"""Extractors that run PyTorch modules, on a GPU if available. Data-loader processes may read the images."""

from collections.abc import Generator, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featuretap.models.built import Built
from featuretap.support.errors import FeaturetapError
from featuretap.support.workers import block_sigint, raise_errors
from featuretap.workflows.extraction.computing import (
    Batch,
    ComputedBatch,
    Extractor,
    Preparation,
    ReadBatch,
    digest_weights,
)
from featuretap.workflows.inference.modules import open_model

BATCH_SIZE = 32


def open_module(
    model: str | None, weights: str | None, *, taps: tuple[str, ...], size: tuple[int, int] | None
) -> Extractor:
    """Build a backbone for extraction. Random weights are the same in every run.

    Args:
        model: name of the backbone; None for the file's backbone or the default.
        weights: a tag, a file, "none" for random weights, or None or "default" for the catalogue's default.
        taps: tap addresses.
        size: (height, width) in pixels to resize images to; None to resize and crop them as the checkpoint's
            preprocessing does.

    Returns:
        The extractor.
    """
    # With a fixed seed, a run with random weights can be resumed. Only the CPU's generator is seeded and restored.
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        backbone: Any = open_model(model, weights, features_only=True, taps=taps).eval().float()
    return Extractor(
        backbone.description,
        backbone.taps,
        Preparation.of_model(backbone.description, size),
        digest_weights({name: tensor.numpy() for name, tensor in backbone.state_dict().items()}),
        partial(_compute_batches, backbone),
        BATCH_SIZE,
    )


class _Reader(Dataset[Any]):
    """Batches of images, read on demand, or the errors of reading them."""

    def __init__(self, preparation: Preparation) -> None:
        self.preparation = preparation

    def __getitem__(self, batch: Batch) -> ReadBatch | FeaturetapError:
        try:
            return self.preparation.read(batch)
        except FeaturetapError as error:
            return error


def _compute_batches(
    backbone: Built, batches: Iterable[Batch], preparation: Preparation, pooled: bool, workers: int
) -> Generator[ComputedBatch, None, None]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader: DataLoader[Any] = DataLoader(
        _Reader(preparation),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        collate_fn=_with_tensor,
        pin_memory=device == "cuda",
        # A forked process may hang in libraries that use threads, which a fork does not copy.
        multiprocessing_context="spawn" if workers else None,
    )
    with block_sigint():
        loaded = iter(loader)
    for shard, names, pixels, bad in raise_errors(loaded):
        features = _compute(backbone, pixels.to(device, non_blocking=True), pooled) if pixels is not None else {}
        yield ComputedBatch(shard, names, features, bad)


def _with_tensor(read: Any) -> Any:
    """Return a batch with its pixels as a tensor, which processes can share. Errors are returned unchanged."""
    if isinstance(read, FeaturetapError):
        return read
    return read.shard, read.names, torch.from_numpy(read.pixels) if read.pixels is not None else None, read.bad


@torch.inference_mode()
def _compute(backbone: Built, images: Tensor, pooled: bool) -> dict[str, NDArray[np.float32]]:
    maps = backbone(images.contiguous(memory_format=torch.channels_last))
    return {name: (values.mean((2, 3)) if pooled else values).cpu().numpy() for name, values in maps.items()}

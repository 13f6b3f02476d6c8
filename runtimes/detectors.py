"""Detectors as files: ONNX for one image of one size, TorchScript for lists of images of any sizes.

torch.export cannot trace a detector, whose number of boxes depends on the image. PyTorch's older ONNX exporter traces
one image, in which the detector must find something. A model that finds nothing in noise is therefore traced with a
lower score threshold, and its own is written into the file afterwards.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import clip_boxes_to_image

from featuretap.heads.modules.ssd import SigmoidSSD
from featuretap.models.built import unwrap, unwrap_parts
from featuretap.runtimes.exportable import Exportable, Run, quiet_exporters
from featuretap.runtimes.signature import Signature, check_sizes
from featuretap.runtimes.torch_runtimes import load_script
from featuretap.runtimes.verification import TOLERANCE
from featuretap.specs.description import Description
from featuretap.specs.graph import IMAGE
from featuretap.support.errors import ExportError, HeadError, OptionError

Objects = Mapping[str, Tensor]
Candidates = tuple[Tensor, Tensor]
RunLists = Callable[[list[Tensor]], Sequence[Objects]]

MINIMUM_SHARE = 0.9
"""Share of the objects that both must find. Where scores are equal to rounding, as those of random weights are, either
of two boxes may be kept."""

THRESHOLD = "score_thresh"
"""torchvision's name of the score threshold."""

THRESHOLD_FACTORS = (1.0, 0.1, 0.0)
"""Factors of the threshold that are tried until something is found."""

SEEDS = (0, 1, 2)

SCALES = (1, 2)
"""Sides of the images that TorchScript is verified with, as multiples of the side that torchvision resizes to. At other
scales torchvision rounds sizes otherwise in TorchScript than in Python."""


class SingleImage(nn.Module):
    """One of torchvision's detectors, called with a batch of one."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector
        self.names = _output_names(detector)
        part = getattr(detector, "roi_heads", detector)
        # As a buffer in place of a float, the threshold stays a constant of its own in the file.
        part.register_buffer(THRESHOLD, torch.tensor(part.__dict__.pop(THRESHOLD)))
        self.threshold: Tensor = getattr(part, THRESHOLD)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return boxes (M, 4), scores (M,), labels (M,) and masks (M, 1, H, W) of images (N, C, H, W), with N = 1."""
        (found,) = self.detector([images[0]])
        return {name: found[name] for name in self.names}


def prepare_detector(model: nn.Module, size: tuple[int, int] | None, batch: int | None) -> Exportable:
    """Prepare a detector for ONNX.

    Raises:
        OptionError: no size, or several images.
        HeadError: the model is no detector of torchvision's.
    """
    check_sizes(size, batch)
    detector, description = _torchvision_detector(model)
    if size is None or batch not in (None, 1):
        raise OptionError(
            f"the head {description.head!r} is exported to ONNX for one image of one size; give it, such as "
            "size=(320, 320), and no batch, or export it as torchscript, which takes lists of images of any sizes"
        )
    single = SingleImage(detector).eval()
    channels = len(description.preprocessing.mean)
    images = _noise(next(detector.parameters()).new_empty(1, channels, *size), 0)
    return Exportable(single, Signature(single.names, True, channels, {}, (size[0], size[1]), 1), description, images)


def write_detector(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write ONNX: "image" (1, C, H, W), with values from 0 to 1 → "boxes", "scores", "labels" (and "masks")."""
    import onnx

    from featuretap.runtimes.torch_sessions import open_onnx

    single: Any = model.model
    wanted = single.threshold.clone()
    try:
        with torch.no_grad(), model.export_errors(), quiet_exporters():
            for factor in THRESHOLD_FACTORS:
                single.threshold.copy_(wanted * factor)
                if len(single(model.images)["boxes"]):
                    break
            outputs = list(single.names)
            torch.onnx.export(
                model.module, (model.images,), path, dynamo=False, input_names=[IMAGE], output_names=outputs
            )
        if not torch.equal(single.threshold, wanted):
            verify_detector(model, open_onnx(path, threads=None)[1])
    finally:
        single.threshold.copy_(wanted)
    proto = onnx.load(path)
    (constant,) = (tensor for tensor in proto.graph.initializer if tensor.name.endswith(THRESHOLD))
    constant.CopyFrom(onnx.numpy_helper.from_array(wanted.numpy(), constant.name))
    for key, value in sorted(metadata.items()):
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, path)


def verify_detector(model: Exportable, run: Run) -> None:
    """Compare the objects that an ONNX file finds in noise with those of the model, or with those it could select."""
    single: Any = model.model
    pairs = []
    for seed in SEEDS:
        images = _noise(model.images, seed)
        with torch.no_grad():
            expected = model.model(images)
            found = dict(zip(model.signature.outputs, run(images), strict=True))
            pairs.append((expected, found, candidates_of(single.detector, images[0])))
    _compare(model, pairs)


def prepare_detector_script(model: nn.Module, size: tuple[int, int] | None, batch: int | None) -> Exportable:
    """Prepare a detector for TorchScript, for any size and number of images.

    Raises:
        OptionError: a size or a batch, which cannot be fixed.
        HeadError: the model is no detector of torchvision's.
    """
    detector, description = _torchvision_detector(model)
    if size is not None or batch is not None:
        raise OptionError(
            f"the head {description.head!r} takes lists of images of any sizes as torchscript; leave size and batch "
            "out, or export it as onnx"
        )
    channels = len(description.preprocessing.mean)
    side = detector.transform.min_size[-1]
    images = _noise(next(detector.parameters()).new_empty(1, channels, side, side), 0)
    return Exportable(detector, Signature(_output_names(detector), True, channels, {}), description, images)


def open_detector_script(path: Path, *, threads: int | None) -> tuple[dict[str, str], RunLists]:
    """Return the metadata of a file, and a list of images → objects in each. It always has PyTorch's threads."""
    module, metadata = load_script(path)

    def run(images: list[Tensor]) -> Sequence[Objects]:
        # It warns at each call that it returns losses too, which are empty in evaluation mode.
        with quiet_exporters(), torch.no_grad():
            _, found = module(images)
        return found

    return metadata, run


def verify_detector_script(model: Exportable, run: RunLists) -> None:
    """Compare the objects that TorchScript and the model find in two images of different sizes at once."""
    (_, channels, side, _) = model.images.shape
    images = [_noise(model.images.new_empty(channels, side * scale, side * scale), 0) for scale in SCALES]
    with torch.no_grad():
        candidates = [candidates_of(model.model, image) for image in images]
        _compare(model, list(zip(model.model(images), run(images), candidates, strict=True)))


def candidates_of(detector: Any, image: Tensor) -> Candidates | None:
    """Return all that a one-stage detector selects its objects of an image (C, H, W) from; None of two-stage ones.

    Returns:
        boxes (A, 4) in pixels of the image, and scores (A, classes).
    """
    if not hasattr(detector, "head"):
        return None
    seen: dict[str, Any] = {}
    parts = {"head": detector.head, "anchors": detector.anchor_generator}
    hooks = [
        part.register_forward_hook(lambda _, given, returned, name=name: seen.__setitem__(name, (given, returned)))
        for name, part in parts.items()
    ]
    try:
        detector([image])
    finally:
        for hook in hooks:
            hook.remove()
    (_, outputs), ((resized, _), (anchors,)) = seen["head"], seen["anchors"]
    (size,) = resized.image_sizes
    coder = detector.box_coder
    decode = coder.decode if isinstance(detector, FCOS) else coder.decode_single
    boxes = clip_boxes_to_image(decode(outputs["bbox_regression"][0], anchors), size)
    logits = outputs["cls_logits"][0]
    if isinstance(detector, SSD) and not isinstance(detector, SigmoidSSD):
        scores = logits.softmax(-1)
    elif isinstance(detector, FCOS):
        scores = (logits.sigmoid() * outputs["bbox_ctrness"][0].sigmoid()).sqrt()
    else:
        scores = logits.sigmoid()
    return resize_boxes(boxes, size, image.shape[-2:]), scores


def _torchvision_detector(model: nn.Module) -> tuple[Any, Description]:
    """Return a copy of torchvision's detector inside a model, in evaluation mode, and the model's description."""
    inner: Any = unwrap_parts(unwrap(model, "registry.export writes"))
    if not hasattr(inner, "as_detector"):
        raise HeadError(
            f"the head {inner.description.head!r} finds objects in a way of its own; those that are exported are "
            "made of torchvision's detectors"
        )
    return copy.deepcopy(inner).eval().requires_grad_(False).as_detector(), inner.description


def _output_names(detector: nn.Module) -> tuple[str, ...]:
    heads: Any = getattr(detector, "roi_heads", None)
    masks = heads is not None and heads.has_mask()
    return ("boxes", "scores", "labels", *(("masks",) if masks else ()))


def _noise(like: Tensor, seed: int) -> Tensor:
    """Return reproducible images of a shape, with values from 0 to 1."""
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


def _compare(model: Exportable, pairs: Sequence[tuple[Objects, Objects, Candidates | None]]) -> None:
    """Refuse a file that finds fewer than nine in ten of the model's objects, or as many others, in any order."""
    objects = sum(max(len(expected["boxes"]), len(found["boxes"])) for expected, found, _ in pairs)
    common = sum(
        _count_common(expected, found) if candidates is None else _count_selected(expected, found, candidates)
        for expected, found, candidates in pairs
    )
    if common < MINIMUM_SHARE * objects:
        raise ExportError(
            f"{model.label} was exported, and of {objects} objects in noise the file and the model agree about "
            f"{common}; the file is not kept"
        )


def _count_selected(expected: Objects, found: Objects, candidates: Candidates) -> int:
    """Return how many objects of a file are candidates of the model, and have the scores of the model's in order.

    Which candidates of equal scores are selected is chance, and decides about others that overlap with them.
    """
    boxes, scores = candidates
    selected = 0
    for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
        is_near = (boxes - box).abs().amax(1) <= TOLERANCE * max(1.0, float(box.abs().max()))
        selected += bool((is_near & ((scores[:, label] - score).abs() <= TOLERANCE)).any())
    length = min(len(expected["scores"]), len(found["scores"]))
    first, second = (objects["scores"].sort(descending=True).values[:length] for objects in (expected, found))
    return min(selected, int(((first - second).abs() <= TOLERANCE).sum()))


def _count_common(expected: Objects, found: Objects) -> int:
    """Return how many objects both have: of the same label, boxes, scores and masks equal to 1e-4 of the largest."""
    left = list(range(len(found["boxes"])))
    for index in range(len(expected["boxes"])):
        match = next((other for other in left if _is_same(expected, index, found, other)), None)
        if match is not None:
            left.remove(match)
    return len(found["boxes"]) - len(left)


def _is_same(expected: Objects, index: int, found: Objects, other: int) -> bool:
    return all(
        float((found[name][other] - values[index]).abs().max()) <= TOLERANCE * max(1.0, float(values.abs().max()))
        for name, values in expected.items()
    )

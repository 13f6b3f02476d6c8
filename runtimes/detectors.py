"""Export torchvision's detectors to ONNX (one image of a fixed size) and TorchScript (lists of images of any size).

torch.export cannot trace a detector, since the number of boxes depends on the image. PyTorch's older ONNX exporter
traces the model on one image in which the detector must find an object. A model that finds nothing in random noise is
traced with a lower score threshold, and the original threshold is then written into the file.
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
"""Minimum fraction of objects that the model and the file must both find. If scores are equal up to rounding, as with
random weights, non-maximum suppression may keep either of two boxes."""

THRESHOLD = "score_thresh"
"""Name of torchvision's score threshold."""

THRESHOLD_FACTORS = (1.0, 0.1, 0.0)
"""Factors of the threshold, tried until the detector finds an object."""

SEEDS = (0, 1, 2)

SCALES = (1, 2)
"""Side lengths of the images that verify TorchScript, as multiples of the side that torchvision resizes to. At other
scales, torchvision rounds sizes differently in TorchScript and in Python."""


class SingleImage(nn.Module):
    """A torchvision detector that takes images (N, C, H, W) with N = 1."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector
        self.names = _output_names(detector)
        part = getattr(detector, "roi_heads", detector)
        # The exporter inlines a float but writes a buffer as a named constant, which can be replaced in the file.
        part.register_buffer(THRESHOLD, torch.tensor(part.__dict__.pop(THRESHOLD)))
        self.threshold: Tensor = getattr(part, THRESHOLD)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return boxes (M, 4), scores (M,), labels (M,) and masks (M, 1, H, W) for images (1, C, H, W)."""
        (found,) = self.detector([images[0]])
        return {name: found[name] for name in self.names}


def prepare_detector(model: nn.Module, size: tuple[int, int] | None, batch: int | None) -> Exportable:
    """Prepare a detector for ONNX.

    Args:
        model: the detector.
        size: (height, width) of the image in pixels; required.
        batch: 1 or None.

    Returns:
        The prepared model.

    Raises:
        OptionError: there is no size, or the batch is larger than 1.
        HeadError: the model is not a torchvision detector.
    """
    check_sizes(size, batch)
    detector, description = _torchvision_detector(model)
    if size is None or batch not in (None, 1):
        raise OptionError(
            f"ONNX files of the head {description.head!r} take one image of a fixed size; set the size, such as "
            "size=(320, 320), without a batch, or export as torchscript, which takes lists of images of any size"
        )
    single = SingleImage(detector).eval()
    channels = len(description.preprocessing.mean)
    images = _noise(next(detector.parameters()).new_empty(1, channels, *size), 0)
    return Exportable(single, Signature(single.names, True, channels, {}, (size[0], size[1]), 1), description, images)


def write_detector(model: Exportable, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a detector as an ONNX file for one image.

    The file maps "image" (1, C, H, W), with values from 0 to 1, to "boxes", "scores", "labels" and, if the model has
    them, "masks".
    """
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
    """Compare the objects that an ONNX file finds in noise with the objects or the candidate boxes of the model."""
    single: Any = model.model
    pairs = []
    for seed in SEEDS:
        images = _noise(model.images, seed)
        with torch.no_grad():
            expected = model.model(images)
            found = dict(zip(model.signature.outputs, run(images), strict=True))
            pairs.append((expected, found, list_candidates(single.detector, images[0])))
    _compare(model, pairs)


def prepare_detector_script(model: nn.Module, size: tuple[int, int] | None, batch: int | None) -> Exportable:
    """Prepare a detector for TorchScript, for lists of images of any size.

    Args:
        model: the detector.
        size: must be None.
        batch: must be None.

    Returns:
        The prepared model.

    Raises:
        OptionError: the size or the batch is fixed.
        HeadError: the model is not a torchvision detector.
    """
    detector, description = _torchvision_detector(model)
    if size is not None or batch is not None:
        raise OptionError(
            f"torchscript files of the head {description.head!r} take lists of images of any size; omit size and "
            "batch, or export as onnx"
        )
    channels = len(description.preprocessing.mean)
    side = detector.transform.min_size[-1]
    images = _noise(next(detector.parameters()).new_empty(1, channels, side, side), 0)
    return Exportable(detector, Signature(_output_names(detector), True, channels, {}), description, images)


def open_detector_script(path: Path, *, threads: int | None) -> tuple[dict[str, str], RunLists]:
    """Open a TorchScript detector, which maps a list of images to the objects in each.

    Args:
        path: the file.
        threads: ignored; TorchScript uses PyTorch's number of threads.

    Returns:
        The metadata and a function that runs the detector.
    """
    module, metadata = load_script(path)

    def run(images: list[Tensor]) -> Sequence[Objects]:
        # torchvision warns in each call that a scripted detector also returns losses, which are empty in evaluation.
        with quiet_exporters(), torch.no_grad():
            _, found = module(images)
        return found

    return metadata, run


def verify_detector_script(model: Exportable, run: RunLists) -> None:
    """Compare the objects that TorchScript and the model find in a list of two images of different sizes."""
    (_, channels, side, _) = model.images.shape
    images = [_noise(model.images.new_empty(channels, side * scale, side * scale), 0) for scale in SCALES]
    with torch.no_grad():
        candidates = [list_candidates(model.model, image) for image in images]
        _compare(model, list(zip(model.model(images), run(images), candidates, strict=True)))


def list_candidates(detector: Any, image: Tensor) -> Candidates | None:
    """Return the candidate boxes from which a one-stage detector selects its objects.

    Args:
        detector: a torchvision detector.
        image: an image (C, H, W).

    Returns:
        Boxes (A, 4) in pixels and scores (A, classes); None for two-stage detectors.
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
    """Return a copy of a model's torchvision detector in evaluation mode, and the model's description."""
    inner: Any = unwrap_parts(unwrap(model, "registry.export writes"))
    if not hasattr(inner, "as_detector"):
        raise HeadError(
            f"cannot export the head {inner.description.head!r}; only detectors based on torchvision's are supported"
        )
    return copy.deepcopy(inner).eval().requires_grad_(False).as_detector(), inner.description


def _output_names(detector: nn.Module) -> tuple[str, ...]:
    heads: Any = getattr(detector, "roi_heads", None)
    masks = heads is not None and heads.has_mask()
    return ("boxes", "scores", "labels", *(("masks",) if masks else ()))


def _noise(like: Tensor, seed: int) -> Tensor:
    """Return reproducible random images of the same shape, with values from 0 to 1."""
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


def _compare(model: Exportable, pairs: Sequence[tuple[Objects, Objects, Candidates | None]]) -> None:
    """Check that a file finds at least nine in ten of the model's objects and few others, in any order."""
    objects = sum(max(len(expected["boxes"]), len(found["boxes"])) for expected, found, _ in pairs)
    common = sum(
        _count_common(expected, found) if candidates is None else _count_selected(expected, found, candidates)
        for expected, found, candidates in pairs
    )
    if common < MINIMUM_SHARE * objects:
        raise ExportError(
            f"cannot export {model.label}: the exported file and the model agree on only {common} of {objects} objects "
            "in random images"
        )


def _count_selected(expected: Objects, found: Objects, candidates: Candidates) -> int:
    """Return how many of a file's objects are candidates of the model, with the model's scores in order.

    Among candidates of equal score, the selection is arbitrary, and it affects which overlapping boxes are suppressed.
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
    """Return the number of common objects: same label, and boxes, scores and masks equal within `TOLERANCE`."""
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

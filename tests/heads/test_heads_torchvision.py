"""torchvision's published detectors and segmenters: equal models, and weights in both directions."""

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support.heads import images, targets
from support.oracles import with_statistics
from torch import Tensor, nn
from torchvision.models import get_model

from featuretap.command_line import main
from featuretap.registry import Registry
from featuretap.registry.errors import UnknownHeadError, WeightsError

LRASPP = {
    "taps": ("C3.first", "C5"),
    "dilate_entry": True,
    "pooling": "global",
    "gate": "sigmoid",
    "gate_bias": False,
}

# Fewer candidate boxes keep the tests fast. Both libraries get the same limits.
FEW = {"topk_candidates": 30}
FEW_RCNN = {"min_size": 160, "max_size": 240, "box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 30}

# torchvision's name → its arguments, featuretap's head and options.
MODELS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "ssdlite320_mobilenet_v3_large": (FEW, "ssdlite", {"reduced_tail": True, "reduce_lowest_anchors": False, **FEW}),
    "fasterrcnn_mobilenet_v3_large_fpn": (FEW_RCNN, "faster_rcnn", {"taps": ("C5.first", "C5"), **FEW_RCNN}),
    "lraspp_mobilenet_v3_large": ({}, "lraspp", LRASPP),
    "deeplabv3_mobilenet_v3_large": (
        {"aux_loss": True},
        "deeplab_v3",
        {"auxiliary": True, "dilate_entry": True},
    ),
}
DETECTORS = list(MODELS)[:2]
HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}


def passes(name: str) -> Callable[[nn.Module], object]:
    """Return a function that runs a model in training mode with the inputs of its kind."""
    if name in DETECTORS:
        return lambda model: model(images(4, 320, 320), targets(4, 320, 320))
    return lambda model: model(torch.stack(images(4, 97, 97)) * 2 - 1)


def theirs(name: str) -> nn.Module:
    """Return torchvision's model with statistics that are sensitive to a wrong epsilon."""
    torch.manual_seed(1)
    model = get_model(name, weights=None, weights_backbone=None, **MODELS[name][0])
    return with_statistics(model, passes(name))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, Path]]:
    """Return a function that creates torchvision's model and its file once for each name."""
    folder = tmp_path_factory.mktemp("torchvision")

    @functools.cache
    def published(name: str) -> tuple[nn.Module, Path]:
        model = theirs(name)
        torch.save(model.state_dict(), folder / f"{name}.pth")
        return model, folder / f"{name}.pth"

    return published


Published = Callable[[str], tuple[nn.Module, Path]]


def ours_of(registry: Registry, name: str, path: Path, **more: Any) -> nn.Module:
    _, head, options = MODELS[name]
    normalisation = HALF if head == "ssdlite" else {}
    return registry.build(
        "mobilenet_v3_large", head=head, pretrained=path, **{**options, **normalisation, **more}
    ).eval()


def predictions(model: nn.Module, name: str) -> list[Tensor]:
    with torch.inference_mode():
        if name in DETECTORS:
            return [tensor for table in model([*images(1, 97, 161), *images(1, 200, 130)]) for tensor in table.values()]
        return list(model(torch.stack(images(2, 97, 161)) * 2 - 1).values())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_predicts_what_torchvisions_predicts(registry: Registry, published: Published, name: str) -> None:
    model, path = published(name)
    ours = ours_of(registry, name, path)
    expected = predictions(model, name)
    assert all(len(tensor) for tensor in expected)
    for our, their in zip(predictions(ours, name), expected, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_has_torchvisions_losses(registry: Registry, published: Published, name: str) -> None:
    model, path = published(name)
    ours = ours_of(registry, name, path)
    losses = []
    for detector in (model, ours):
        state = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
        torch.manual_seed(3)
        losses.append(detector.train()(images(3, 97, 161), targets(3, 97, 161)))
        detector.eval().load_state_dict(state)
    assert losses[0].keys() == losses[1].keys()
    for loss, expected in losses[0].items():
        torch.testing.assert_close(losses[1][loss], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_torchvision_checkpoint_is_recognised_and_converted_back(
    registry: Registry, published: Published, tmp_path: Path, name: str
) -> None:
    """A .pth file without metadata is loaded, saved, and converted back for torchvision's strict loading."""
    model, path = published(name)
    loaded = registry.load(path)
    said = loaded.description
    assert (said.name, said.head) == ("mobilenet_v3_large", MODELS[name][1])
    kept = registry.save(loaded, tmp_path / "ours.safetensors")
    for source in (kept, path):
        back = registry.convert(source, tmp_path / "theirs.safetensors", layout="torchvision")
        again = get_model(name, weights=None, weights_backbone=None, **MODELS[name][0])
        again.load_state_dict(safetensors.torch.load_file(back))
        for key, tensor in again.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[key]), key
    again.eval()
    for their, expected in zip(predictions(again, name), predictions(model, name), strict=True):
        assert torch.equal(their, expected)
    assert registry.load(back).description.head == MODELS[name][1]


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_loaded_without_its_architecture_predicts_the_same(
    registry: Registry, published: Published, name: str
) -> None:
    """This includes normalization, which SSDLite's file does not state: torchvision's model normalizes internally."""
    model, path = published(name)
    chosen = {key: value for key, value in MODELS[name][0].items() if key != "aux_loss"}
    for our, their in zip(
        predictions(registry.load(path, **chosen).eval(), name), predictions(model, name), strict=True
    ):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


def test_a_deeplab_without_an_auxiliary_output_is_recognised(registry: Registry, tmp_path: Path) -> None:
    """torchvision's default is no auxiliary output."""
    model = get_model("deeplabv3_mobilenet_v3_large", weights=None, weights_backbone=None)
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    said = registry.load(tmp_path / "plain.pth").description
    assert (said.head, said.options["auxiliary"], said.taps) == ("deeplab_v3", False, ("C5",))


def test_a_catalogued_checkpoint_gets_the_options_of_its_entry(
    configured: Callable[[str], Registry], published: Published, tmp_path: Path
) -> None:
    """Two entries have the same shapes. The digest identifies the right one."""
    _, path = published("fasterrcnn_mobilenet_v3_large_fpn")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    ours = configured(
        f'[weights."mobilenet_v3_large.mine"]\nurl = "file://{path}"\nsha256 = "{digest}"\nlayout = "torchvision"\n'
        'norm_eps = 1e-5\nhead = "faster_rcnn"\noptions = { taps = ["C5.first", "C5"], min_size = 111 }\n'
        'classes = "coco"\n'
    )
    for source in (path, ours.convert(path, tmp_path / "kept.safetensors")):
        said = ours.load(source).description
        assert (said.weights, said.classes, dict(said.options)) == (
            "mobilenet_v3_large.mine",
            "coco",
            {"min_size": 111},
        )
        assert (said.preprocessing.crop, said.preprocessing.inside) == (None, True)


def test_a_model_with_other_normalisation_is_not_saved_for_torchvision(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v3_large", head="ssdlite", reduced_tail=True, reduce_lowest_anchors=False)
    with pytest.raises(WeightsError) as error:
        registry.save(model, tmp_path / "x.safetensors", layout="torchvision")
    assert str(error.value) == (
        "cannot save 'mobilenet_v3_large' with reduce_lowest_anchors=False, reduced_tail in the layout 'torchvision', "
        "which has fixed image_mean=(0.5, 0.5, 0.5) and image_std=(0.5, 0.5, 0.5), not (0.485, 0.456, 0.406) and "
        "(0.229, 0.224, 0.225); use the layout 'featuretap'"
    )


@pytest.mark.parametrize("name", MODELS)
def test_our_models_predict_the_same_in_torchvision(registry: Registry, tmp_path: Path, name: str) -> None:
    """Saving adjusts the weights for torchvision's epsilons. Faster R-CNN's norms have 1e-5 there and 1e-3 here."""
    arguments, head, options = MODELS[name]
    normalisation = HALF if head == "ssdlite" else {}
    ours = registry.build("mobilenet_v3_large", head=head, **options, **normalisation)
    ours = with_statistics(ours, passes(name))
    path = registry.save(ours, tmp_path / "theirs.safetensors", layout="torchvision")
    model = get_model(name, weights=None, weights_backbone=None, **arguments)
    model.load_state_dict(safetensors.torch.load_file(path))
    model.eval()
    if name in DETECTORS:
        # Scores of random weights are so close that rounding changes their order, so compare the maps.
        batch = torch.stack(images(2, 160, 160))
        with torch.inference_mode():
            expected = list(model.backbone(batch).values())
            found = list(ours.head.neck(ours.backbone(batch)).values())
    else:
        expected, found = predictions(model, name), predictions(ours, name)
    for our, their in zip(found, expected, strict=True):
        assert (our - their).abs().max() < 1e-4 * their.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_a_file_of_another_number_of_classes_is_recognised_too(registry: Registry, tmp_path: Path, name: str) -> None:
    classes = 5
    arguments = {**MODELS[name][0], "num_classes": classes}
    model = get_model(name, weights=None, weights_backbone=None, **arguments)
    path = tmp_path / "mine.pth"
    torch.save(model.state_dict(), path)
    loaded = registry.load(path)
    assert (loaded.description.head, loaded.description.num_classes) == (MODELS[name][1], classes)
    assert ours_of(registry, name, path, num_classes=classes).description.num_classes == classes


def test_class_layers_start_anew_for_another_number_of_classes(
    registry: Registry, published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    _, path = published("ssdlite320_mobilenet_v3_large")
    with caplog.at_level(logging.WARNING, "featuretap"):
        ours_of(registry, "ssdlite320_mobilenet_v3_large", path, num_classes=4)
    assert (
        "; head.predictor.classification_head.module_list.0.1, head.predictor.classification_head.module_list.1.1, "
        "head.predictor.classification_head.module_list.2.1 and 3 more are randomly initialized (the file has 91 "
        "classes, the model 4)" in caplog.text
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_backbone_is_loaded_from_a_torchvision_checkpoint(
    registry: Registry, published: Published, name: str
) -> None:
    model, path = published(name)
    _, head, _ = MODELS[name]
    reduced = {"reduced_tail": True} if head == "ssdlite" else {}
    for backbone in (
        registry.build("mobilenet_v3_large", features_only=True, pretrained=path, **reduced),
        registry.load(path, features_only=True),
    ):
        stem = next(tensor for key, tensor in model.state_dict().items() if key.startswith("backbone."))
        assert torch.equal(backbone.stages.C1[0].conv.weight, stem)
        eps = 1e-5 if head == "faster_rcnn" else 1e-3
        assert backbone.stages.C5[-1].norm.eps == eps


ENTRIES = {
    "ssdlite320_coco_v1": ("ssdlite320_mobilenet_v3_large", 320, (0.5, 0.5, 0.5)),
    "fasterrcnn_fpn_coco_v1": ("fasterrcnn_mobilenet_v3_large_fpn", 800, (0.485, 0.456, 0.406)),
    "fasterrcnn_320_fpn_coco_v1": ("fasterrcnn_mobilenet_v3_large_320_fpn", 320, (0.485, 0.456, 0.406)),
    "lraspp_coco_voc_v1": ("lraspp_mobilenet_v3_large", None, None),
    "deeplabv3_coco_voc_v1": ("deeplabv3_mobilenet_v3_large", None, None),
}


@pytest.mark.parametrize(("tag", "name", "size", "mean"), [(tag, *entry) for tag, entry in ENTRIES.items()])
def test_published_weights_define_head_and_options(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    registry: Registry,
    tag: str,
    name: str,
    size: int | None,
    mean: tuple[float, ...] | None,
) -> None:
    """The weights come from a prepared cache, and the check of the published digest is disabled."""
    entry = next(entry for entry in registry.published_weights if entry.tag == tag)
    extra = {"aux_loss": True} if "deeplab" in name else {}
    model = get_model(name, weights=None, weights_backbone=None, **extra)
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("featuretap.weights.opening._check_digest", lambda *given: None)
    torch.save(model.state_dict(), cache / entry.url.rpartition("/")[2])
    built = registry.build("mobilenet_v3_large", pretrained=tag)
    assert (built.description.head, built.description.weights) == (entry.head, entry.name)
    assert sum(p.numel() for p in built.parameters()) == registry.spec("mobilenet_v3_large", pretrained=tag).parameters
    if size:
        transform = built.head.transform
        assert transform.min_size[-1] == size
        assert tuple(transform.image_mean) == mean
        theirs = model.transform
        assert (tuple(transform.min_size), transform.max_size, transform.fixed_size) == (
            tuple(theirs.min_size),
            theirs.max_size,
            theirs.fixed_size,
        )
    if entry.head == "faster_rcnn":
        assert built.head.rpn.score_thresh == model.rpn.score_thresh == 0.05
        assert built.head.rpn._post_nms_top_n == model.rpn._post_nms_top_n
    backbone = registry.build("mobilenet_v3_large", pretrained=tag, features_only=True)
    assert backbone.taps["C5"].channels == (480 if entry.head == "ssdlite" else 960)


def test_explicit_options_override_those_of_the_weights(registry: Registry) -> None:
    options = {"size": 512, "num_classes": 4, "reduce_lowest_anchors": True}
    spec = registry.spec("mobilenet_v3_large", pretrained="ssdlite320_coco_v1", **options)
    assert (spec.head_options["size"], spec.head_options["reduce_lowest_anchors"], spec.num_classes) == (512, True, 4)
    assert spec.backbone.taps["C5"].channels == 480
    classifier = registry.spec("mobilenet_v3_large", pretrained="ssdlite320_coco_v1", head="classification")
    assert tuple(classifier.backbone.taps) == ("C5",)


def test_a_model_that_torchvision_lacks_is_not_saved_for_it(registry: Registry, tmp_path: Path) -> None:
    for options in ({}, {"reduced_tail": True}):
        model = registry.build("mobilenet_v3_large", head="ssdlite", **options)
        with pytest.raises(
            WeightsError, match="in the layout 'torchvision', which does not have this network; use the layout"
        ):
            registry.save(model, tmp_path / "x.safetensors", layout="torchvision")
    with pytest.raises(WeightsError) as error:
        registry.save(registry.build("mobilenet_v3_large", head="fcos"), tmp_path / "x", layout="torchvision")
    assert str(error.value) == (
        "cannot save 'mobilenet_v3_large' in the layout 'torchvision': the head 'fcos' does not support the layout "
        "'torchvision'; it supports featuretap"
    )
    with pytest.raises(WeightsError, match="the head 'lraspp' does not support the layout 'timm'"):
        registry.save(registry.build("mobilenet_v3_large", head="lraspp"), tmp_path / "x", layout="timm")


def test_the_wrong_number_of_boxes_is_a_clear_error(registry: Registry, published: Published) -> None:
    _, path = published("ssdlite320_mobilenet_v3_large")
    with pytest.raises(WeightsError) as error:
        registry.build("mobilenet_v3_large", head="ssdlite", reduced_tail=True, pretrained=path)
    assert str(error.value) == (
        "weights do not fit 'mobilenet_v3_large' with reduced_tail: "
        "head.predictor.classification_head.module_list.0.1.weight is (546, 672, 1, 1) in the file, (273, 672, 1, 1) "
        "in the model; the file fits 'mobilenet_v3_large' with head='ssdlite', taps=('C4.expansion', 'C5'), "
        "reduced_tail, reduce_lowest_anchors=False"
    )


def test_weights_of_a_user_for_an_unknown_head_are_refused(configured: Callable[[str], Registry]) -> None:
    text = (
        '[weights."mobilenet_v2.mine"]\nurl = "file:///mine.pth"\nsha256 = "01234567"\nlayout = "featuretap"\n'
        'norm_eps = 1e-5\nhead = "retinnet"\n'
    )
    with pytest.raises(
        Exception, match=r"weights.mobilenet_v2.mine.head cannot be used: no head named 'retinnet'; did you mean"
    ):
        configured(text).list_weights()
    with pytest.raises(UnknownHeadError):
        Registry(discover=False).spec("mobilenet_v2", head="retinnet")


def test_inspect_names_the_head_of_a_detectors_file(published: Published, capsys: pytest.CaptureFixture[str]) -> None:
    _, path = published("fasterrcnn_mobilenet_v3_large_fpn")
    with pytest.raises(SystemExit):
        main(["inspect", str(path)])
    out = capsys.readouterr().out
    assert "mobilenet_v3_large (identified from its tensors)" in out
    assert "  head          faster_rcnn, 91 classes" in out

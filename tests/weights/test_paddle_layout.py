"""PaddleClas's MobileNetV3: its files are read and written, and its classifier scales during evaluation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import torch
from support.oracles import outputs_at, with_statistics
from support.paddle_models import MobileNetV3, load_paddle_state, paddle_state, pdparams
from support.saved_models import assert_equal_states
from torch import nn

from featuretap.backbones.mobilenet_v3_paddle import SMALL_PADDLE
from featuretap.heads.modules.classification import OriginalDropout
from featuretap.registry import Registry
from featuretap.registry.errors import OptionError, WeightsError
from featuretap.specs.network_digest import digest_before_dropout, network_digest

SIZES = ["large", "small"]
SCALES = [0.35, 0.5, 0.75, 1.0, 1.25]

# Maps each tap address to the PaddleClas module with the same output.
TAPS = {
    "large": {
        "C1.first": "conv",
        "C1": "blocks.0",
        "C1.expansion": "blocks.1.expand_conv",
        "C2": "blocks.2",
        "C2.expansion": "blocks.3.expand_conv",
        "C3": "blocks.5",
        "C3.depthwise": "blocks.5.bottleneck_conv",
        "C3.expansion": "blocks.6.expand_conv",
        "C4.first": "blocks.6",
        "C4": "blocks.11",
        "C4.expansion": "blocks.12.expand_conv",
        "C5.bottleneck": "blocks.14",
        "C5": "last_second_conv",
    },
    "small": {
        "C1": "conv",
        "C1.expansion": "blocks.0.expand_conv",
        "C2": "blocks.0",
        "C3": "blocks.2",
        "C2.expansion": "blocks.1.expand_conv",
        "C3.depthwise": "blocks.2.bottleneck_conv",
        "C3.expansion": "blocks.3.expand_conv",
        "C4.first": "blocks.3",
        "C4": "blocks.7",
        "C4.expansion": "blocks.8.expand_conv",
        "C5.bottleneck": "blocks.10",
        "C5": "last_second_conv",
    },
}


def network(size: str, scale: float = 1.0, classes: int = 7) -> MobileNetV3:
    torch.manual_seed(0)
    return with_statistics(MobileNetV3(size, scale, classes))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def output_of(session: Any, images: torch.Tensor) -> torch.Tensor:
    (output,) = session(images.numpy()).values()
    return torch.from_numpy(output)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", SIZES)
def test_maps_and_logits_are_those_of_paddleclas(registry: Registry, tmp_path: Path, size: str, scale: float) -> None:
    theirs, path = network(size, scale), tmp_path / "file.pdparams"
    path.write_bytes(pdparams(paddle_state(theirs)))
    ours = registry.load(path, name=f"mobilenet_v3_{size}_paddle", width=scale, num_classes=7).double().eval()
    images = torch.randn(2, 3, 97, 65, dtype=torch.float64)
    with torch.no_grad():
        maps, logits = outputs_at(theirs.double(), TAPS[size].values(), images)
        assert relative(ours(images), logits) < 1e-12
        backbone = registry.load(
            path, name=f"mobilenet_v3_{size}_paddle", width=scale, features_only=True, taps=tuple(TAPS[size])
        )
        for tap, found in backbone.double().eval()(images).items():
            assert relative(found, maps[TAPS[size][tap]]) < 1e-12


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("classes", [1000, 5])
def test_a_file_of_scale_1_is_identified_by_its_tensors(
    registry: Registry, tmp_path: Path, size: str, classes: int
) -> None:
    path = tmp_path / "file.pdparams"
    path.write_bytes(pdparams(paddle_state(network(size, classes=classes))))
    described = registry.load(path).description
    assert (described.name, described.num_classes) == (f"mobilenet_v3_{size}_paddle", classes)


@pytest.mark.parametrize("scale", [0.35, 1.25])
@pytest.mark.parametrize("size", SIZES)
def test_paddleclas_loads_what_is_saved_for_it(registry: Registry, tmp_path: Path, size: str, scale: float) -> None:
    ours = with_statistics(registry.build(f"mobilenet_v3_{size}_paddle", width=scale, num_classes=7)).double()
    path = registry.save(ours, tmp_path / "file.safetensors", "paddle")
    theirs = MobileNetV3(size, scale, 7).double().eval()
    load_paddle_state(theirs, safetensors.numpy.load_file(path))
    images = torch.randn(2, 3, 97, 65, dtype=torch.float64)
    with torch.no_grad():
        assert relative(ours(images), theirs(images)) < 1e-12
    again = registry.load(path)
    assert again.description == replace(ours.description, weights=path)
    weights = {name: tensor for name, tensor in ours.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, tensor in again.state_dict().items():
        # Paddle has no `num_batches_tracked`.
        assert torch.equal(tensor, weights.get(name, torch.tensor(0)))


@pytest.mark.parametrize("size", SIZES)
def test_a_file_of_paddle_is_converted_there_and_back(registry: Registry, tmp_path: Path, size: str) -> None:
    state, path = paddle_state(network(size)), tmp_path / "file.pdparams"
    path.write_bytes(pdparams(state))
    native = registry.convert(path, tmp_path / "native.safetensors")
    assert_equal_states(registry.load(native), registry.load(path))
    back = safetensors.numpy.load_file(registry.convert(native, tmp_path / "back.safetensors", "paddle"))
    assert back.keys() == state.keys()
    assert all((back[name] == state[name]).all() and back[name].shape == state[name].shape for name in state)


def test_tensors_of_paddle_are_read_without_pytorch_too(registry: Registry, tmp_path: Path) -> None:
    theirs, path = network("small"), tmp_path / "file.pdparams"
    path.write_bytes(pdparams(paddle_state(theirs)))
    images = torch.randn(1, 3, 64, 96)
    session = registry.session(path)
    with torch.no_grad():
        assert relative(output_of(session, images), theirs(images)) < 1e-4


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"in_channels": 1}, "which does not have this network"),
        ({"output_stride": 16}, "which does not have this network"),
        ({"padding": "same"}, "which does not have this network"),
        ({"reduced_tail": True}, "which does not have this network"),
        ({"width": 0.6}, "which does not have this network"),
        ({"dropout": 0.5}, "whose classifiers scale by 0.8 in evaluation mode, not by 1 - dropout=0.5"),
    ],
    ids=str,
)
def test_what_paddleclas_does_not_have_is_not_written_for_it(
    registry: Registry, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    model = registry.build("mobilenet_v3_small_paddle", **options)
    with pytest.raises(WeightsError) as error:
        registry.save(model, tmp_path / "file.safetensors", "paddle")
    assert str(error.value).endswith(f" in the layout 'paddle', {reason}; use the layout 'featuretap'")


def test_pickles_are_not_written(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v3_small_paddle")
    with pytest.raises(OptionError) as error:
        registry.save(model, tmp_path / "file.pdparams", "paddle")
    assert str(error.value) == (
        f"cannot save to '{tmp_path}/file.pdparams': .pdparams files are not supported; use a name that ends in "
        ".safetensors, or a folder"
    )


def test_dropout_keeps_values_in_training_and_scales_in_evaluation() -> None:
    torch.manual_seed(0)
    dropout, x = OriginalDropout(0.2), torch.rand(100, 1000) + 1
    kept = dropout.train()(x)
    is_kept = kept != 0
    assert torch.equal(kept[is_kept], x[is_kept])
    assert float(is_kept.float().mean()) == pytest.approx(0.8, abs=0.01)
    assert torch.equal(dropout.eval()(x), x * 0.8)
    assert str(dropout) == "OriginalDropout(p=0.2)"


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("classes", [7, 0])
def test_evaluation_expects_what_training_computes_on_average(registry: Registry, rate: float, classes: int) -> None:
    torch.manual_seed(0)
    head = registry.build("mobilenet_v3_small_paddle", dropout=rate, num_classes=classes).head.double()
    maps = {"C5": torch.rand(1, 576, 1, 1, dtype=torch.float64).expand(4000, -1, -1, -1)}
    with torch.no_grad():
        mean, expected = head.train()(maps).mean(0), head.eval()(maps)[0]
    assert relative(mean, expected) < 0.05


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"dropout": 0.0}, {"num_classes": 0}], ids=str)
def test_runtimes_scale_as_the_module_does(registry: Registry, tmp_path: Path, options: dict[str, Any]) -> None:
    model = with_statistics(registry.build("mobilenet_v3_small_paddle", **options), nearly_dead=False)
    session = registry.session(registry.save(model, tmp_path / "file.safetensors"))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert relative(output_of(session, images), model(images)) < 1e-4


def test_other_families_have_inverted_dropout(registry: Registry) -> None:
    for name in registry.list_backbones():
        if name.startswith("mobilenet"):
            classifier = registry.backbone(name).classifier
            assert classifier.inverted_dropout == ("paddle" not in name)
            assert classifier.evaluation_scale(0.5) == (0.5 if "paddle" in name else 1)
    assert isinstance(registry.build("mobilenet_v3_small").head.dropout, nn.Dropout)


@pytest.fixture
def early_file(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a file as featuretap did before its dropout scaled during evaluation."""

    def write(**options: Any) -> Path:
        with monkeypatch.context() as patched:
            patched.setattr("featuretap.weights.writing.network_digest", digest_before_dropout)
            return registry.save(registry.build("mobilenet_v3_small_paddle", **options), tmp_path / "early.safetensors")

    return write


WARNING = (
    "{} was written before the classifier of mobilenet_v3_small_paddle scaled its hidden layer by 0.8 in evaluation "
    "mode; its logits differ from the logits at that time"
)


@pytest.mark.parametrize(
    "read",
    [
        lambda registry, path: registry.load(path),
        lambda registry, path: registry.build("mobilenet_v3_small_paddle", pretrained=path, num_classes=4),
        lambda registry, path: registry.convert(path, path.with_name("converted.safetensors")),
    ],
    ids=["load", "build", "convert"],
)
def test_an_earlier_file_of_a_classifier_is_read_with_a_warning(
    registry: Registry,
    early_file: Callable[..., Path],
    notes: pytest.LogCaptureFixture,
    read: Callable[[Registry, Path], object],
) -> None:
    path = early_file(num_classes=4)
    read(registry, path)
    assert notes.messages == [WARNING.format(path)]


def test_an_earlier_file_of_a_backbone_is_read_without_a_warning(
    registry: Registry, early_file: Callable[..., Path], notes: pytest.LogCaptureFixture
) -> None:
    registry.load(early_file(features_only=True))
    assert notes.messages == []


def test_no_other_network_has_an_earlier_digest(registry: Registry) -> None:
    assert digest_before_dropout(SMALL_PADDLE) == "da5a2626d4f36172"
    assert network_digest(SMALL_PADDLE) not in ("", "da5a2626d4f36172")
    assert digest_before_dropout(registry.backbone("mobilenet_v3_small")) == ""

"""Published weights files are recognized, verified, read safely and loaded into the model, or refused."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import ExifTags, Image
from skimage import data
from support import oracles
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from featuretap.registry import Registry
from featuretap.registry.errors import OptionError, UnknownWeightsError, WeightsError
from featuretap.specs.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from featuretap.weights.fitting import adapt_stem

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """torchvision's V3-Large with random statistics, and its weights file."""
    model = oracles.randomised(oracles.torchvision_model("mobilenet_v3_large")).float()
    path = tmp_path_factory.mktemp("large") / "large.pth"
    torch.save(model.state_dict(), path)
    return model, path


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"])
def test_torchvisions_files_are_recognised_and_give_torchvisions_outputs(
    registry: Registry, name: str, tmp_path: Path
) -> None:
    theirs = oracles.randomised(oracles.torchvision_model(name)).float()
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    model = registry.build(name, pretrained=tmp_path / "file.pth").eval()
    images = torch.randn(2, 3, 97, 161)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images), **CLOSE)
    assert model.description.weights == tmp_path / "file.pth"


def test_reduced_tails_load_torchvisions_reduced_files(registry: Registry, tmp_path: Path) -> None:
    theirs = oracles.randomised(oracles.torchvision_model("mobilenet_v3_large", reduced_tail=True)).float()
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    model = registry.build("mobilenet_v3_large", reduced_tail=True, pretrained=str(tmp_path / "file.pth")).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images), **CLOSE)


@pytest.mark.parametrize("taps", [None, ("C4.expansion", "C2"), ("C1.first",)])
def test_bare_and_truncated_backbones_load_their_part_of_a_full_file(
    registry: Registry, large: tuple[nn.Module, Path], taps: tuple[str, ...] | None
) -> None:
    theirs, path = large
    backbone = registry.build("mobilenet_v3_large", features_only=True, taps=taps, pretrained=path).eval()
    images = torch.randn(1, 3, 64, 64)
    modules = {address: oracles.TORCHVISION["mobilenet_v3_large"][address] for address in backbone.taps}
    expected, _ = oracles.outputs_at(theirs, modules.values(), images)
    for address, values in backbone(images).items():
        torch.testing.assert_close(values, expected[modules[address]], **CLOSE)


@pytest.mark.parametrize("channels", [1, 4, 7])
def test_the_stem_is_adapted_to_other_numbers_of_channels(
    registry: Registry, large: tuple[nn.Module, Path], channels: int
) -> None:
    model, path = large
    backbone = registry.build("mobilenet_v3_large", features_only=True, pretrained=path, in_channels=channels)
    stem, theirs = backbone.stages.C1[0].conv.weight, model.features[0][0].weight
    torch.testing.assert_close(stem, adapt_stem(theirs, channels))


def test_a_summed_stem_gives_grey_images_the_same_outputs() -> None:
    weight, grey = torch.randn(8, 3, 3, 3), torch.randn(1, 1, 9, 9)
    summed = adapt_stem(weight, 1)
    before = nn.functional.conv2d(grey.expand(1, 3, 9, 9), weight)
    torch.testing.assert_close(nn.functional.conv2d(grey, summed), before, **CLOSE)


def test_more_channels_repeat_the_stem_and_keep_its_magnitude() -> None:
    weight = torch.randn(8, 3, 3, 3)
    repeated = adapt_stem(weight, 7)
    torch.testing.assert_close(repeated[:, 3], weight[:, 0] * 3 / 7)
    torch.testing.assert_close(repeated[:, 6], weight[:, 0] * 3 / 7)


def test_official_weights_classify_photographs(registry: Registry, official_weights: Path) -> None:
    from skimage import data
    from torchvision.models import MobileNet_V2_Weights

    model = registry.build("mobilenet_v2", pretrained=official_weights).eval()
    assert model.description.weights == "mobilenet_v2.imagenet1k_v1"
    names = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    transform = registry.transforms(model)
    for photograph, name, probability in ((data.chelsea(), "Egyptian cat", 0.717), (data.coffee(), "espresso", 0.992)):
        with torch.inference_mode():
            probabilities = model(transform(Image.fromarray(photograph))[None]).softmax(1)[0]
        assert names[probabilities.argmax()] == name
        assert probabilities.max().item() == pytest.approx(probability, abs=5e-4)


def test_transforms_equal_torchvisions(registry: Registry, official_weights: Path) -> None:
    from skimage import data
    from torchvision.models import MobileNet_V2_Weights

    model = registry.build("mobilenet_v2", pretrained=official_weights)
    theirs = MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    photograph = Image.fromarray(data.astronaut()[:300])
    torch.testing.assert_close(registry.transforms(model)(photograph), theirs(photograph))


def test_transforms_default_to_imagenets_and_follow_the_channels(registry: Registry) -> None:
    grey = registry.transforms(registry.build("mobilenet_v1", in_channels=1))
    assert grey(Image.new("RGB", (300, 400), "white")).shape == (1, 224, 224)
    four = registry.transforms(registry.build("mobilenet_v1", in_channels=4))
    assert four(torch.zeros(4, 300, 256)).shape == (4, 224, 224)


def test_transforms_turn_a_photograph_upright(registry: Registry, tmp_path: Path) -> None:
    upright = Image.fromarray(data.astronaut()[:, :400])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # rotate by 90° clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    transform = registry.transforms(registry.build("mobilenet_v1_025"))
    with Image.open(tmp_path / "turned.png") as turned:
        assert turned.size == upright.size[::-1]
        torch.testing.assert_close(transform(turned), transform(upright), rtol=0, atol=0)


def test_transforms_ignore_damaged_exif_data(registry: Registry) -> None:
    photograph = Image.fromarray(data.astronaut()[:, :400])
    transform = registry.transforms(registry.build("mobilenet_v1_025"))
    expected = transform(photograph)
    photograph.info["exif"] = b"Exif\0\0garbage"
    torch.testing.assert_close(transform(photograph), expected, rtol=0, atol=0)


def test_transforms_of_whole_images_keep_their_size(registry: Registry) -> None:
    backbone = registry.build("mobilenet_v1_025", features_only=True)
    image = torch.full((3, 97, 161), 255, dtype=torch.uint8)
    prepared = registry.transforms(backbone, whole=True)(image)
    assert prepared.shape == (3, 97, 161)
    expected = [(1 - mean) / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    assert prepared[:, 5, 7].tolist() == pytest.approx(expected)
    assert registry.transforms(backbone)(image).shape == (3, 224, 224)


def test_transforms_of_a_model_without_a_description_are_refused(registry: Registry) -> None:
    with pytest.raises(OptionError) as error:
        registry.transforms(nn.Conv2d(1, 1, 1))
    assert str(error.value) == (
        "Conv2d has no description; registry.transforms reads models that registry.build or registry.load returned"
    )


def test_eps_is_that_of_the_file(registry: Registry, official_weights: Path) -> None:
    model = registry.build("mobilenet_v2", pretrained=official_weights)
    assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-5}


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        (
            "mobilenet_v2",
            "imagenet1k_v3",
            "'mobilenet_v2' has no weights 'imagenet1k_v3'; did you mean 'imagenet1k_v2'? "
            "its tags are imagenet1k_v1, imagenet1k_v2, ssdlite300_person, ra_in1k",
        ),
        (
            "mobilenet_v2",
            "banana",
            "'mobilenet_v2' has no weights 'banana'; "
            "its tags are imagenet1k_v1, imagenet1k_v2, ssdlite300_person, ra_in1k",
        ),
        (
            "mobilenet_v1_025",
            True,
            "'mobilenet_v1_025' has no default weights (the catalogue has no weights for it); "
            "name a tag, or give the path of a file",
        ),
    ],
)
def test_unknown_tags_are_refused_by_name(registry: Registry, name: str, pretrained: bool | str, message: str) -> None:
    for ask in (registry.spec, registry.build):
        with pytest.raises(UnknownWeightsError) as error:
            ask(name, pretrained=pretrained)
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"width": 0.75},
            "weights do not fit 'mobilenet_v3_large' with width=0.75: stages.C3.0.project.conv.weight is "
            "(40, 72, 1, 1) in the file, (32, 72, 1, 1) in the model; the file fits 'mobilenet_v3_large'",
        ),
        (
            {"width": 0.75, "reduced_tail": True},
            "weights do not fit 'mobilenet_v3_large' with width=0.75, reduced_tail: stages.C3.0.project.conv.weight is "
            "(40, 72, 1, 1) in the file, (32, 72, 1, 1) in the model; the file fits 'mobilenet_v3_large'",
        ),
    ],
)
def test_weights_of_another_shape_are_refused_by_name(
    registry: Registry, large: tuple[nn.Module, Path], options: dict[str, object], message: str
) -> None:
    with pytest.raises(WeightsError) as error:
        registry.build("mobilenet_v3_large", pretrained=large[1], **options)
    assert str(error.value) == message


def test_weights_of_another_network_are_refused(registry: Registry, large: tuple[nn.Module, Path]) -> None:
    with pytest.raises(WeightsError, match=r"weights do not fit 'mobilenet_v2': .*large.pth has .*, which the model"):
        registry.build("mobilenet_v2", pretrained=large[1])
    with pytest.raises(WeightsError, match=r"weights do not fit 'mobilenet_v1': .* is not in one of its layouts: "):
        registry.build("mobilenet_v1", pretrained=large[1])


@pytest.mark.parametrize("features_only", [True, False])
def test_missing_and_unexpected_tensors_are_named(
    registry: Registry, large: tuple[nn.Module, Path], tmp_path: Path, features_only: bool
) -> None:
    state, path = large[0].state_dict(), tmp_path / "large.pth"
    torch.save({key: value for key, value in state.items() if key != "features.4.block.1.0.weight"}, path)
    with pytest.raises(WeightsError) as error:
        registry.build("mobilenet_v3_large", features_only=features_only, pretrained=path)
    assert str(error.value) == (
        f"weights do not fit 'mobilenet_v3_large': {path} does not have features.4.block.1.0.weight "
        "(stages.C3.0.depthwise.conv.weight in the model)"
    )
    torch.save({**state, "features.17.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"large.pth has features.17.weight, which the model does not have"):
        registry.build("mobilenet_v3_large", features_only=features_only, pretrained=path)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this code must never run",)


@pytest.mark.parametrize("content", [b"not found", b"PK\x03\x04 truncated"])
def test_files_that_are_not_weights_are_refused(registry: Registry, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as error:
        registry.build("mobilenet_v2", pretrained=path)
    assert str(error.value) == (
        f"'{path}' is not a weights file that can be read safely; use a .safetensors file, or a .pth file with a state "
        "dict"
    )


def test_code_in_a_pickle_is_not_run(registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for write in (
        lambda path: torch.save(Malicious(), path),
        lambda path: path.write_bytes(pickle.dumps(Malicious(), protocol=2)),
    ):
        write(tmp_path / "file.pth")
        with pytest.raises(WeightsError, match=r"contains builtins\.print, which can run code when it is read"):
            registry.build("mobilenet_v2", pretrained=tmp_path / "file.pth")
    assert "never run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [{}, [torch.zeros(1)], {"model": {}}])
def test_checkpoints_that_are_not_a_state_dict_are_refused(registry: Registry, tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(
        WeightsError, match=r"; save (model\.state_dict\(\) instead of the model|a dictionary of tensors)"
    ):
        registry.build("mobilenet_v2", pretrained=tmp_path / "file.pth")


def test_a_missing_file_is_reported(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        registry.build("mobilenet_v2", pretrained=tmp_path / "absent.pth")
    assert str(error.value) == f"cannot read the weights '{tmp_path}/absent.pth': No such file or directory"


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
def test_other_batch_norms_have_the_eps_of_the_file(
    registry: Registry, large: tuple[nn.Module, Path], norm: type
) -> None:
    theirs, path = large
    model = registry.build("mobilenet_v3_large", pretrained=path, norm=norm).double().eval()
    expected = copy.deepcopy(theirs).double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", [lambda channels: nn.GroupNorm(8, channels), nn.Identity, nn.InstanceNorm2d])
def test_norms_that_cannot_hold_the_statistics_are_refused(
    registry: Registry, large: tuple[nn.Module, Path], norm: Callable[[int], nn.Module]
) -> None:
    with pytest.raises(WeightsError) as error:
        registry.build("mobilenet_v3_large", features_only=True, pretrained=large[1], norm=norm)
    assert f"its norm {type(norm(8)).__name__} has no running statistics, but the file has; use a batch norm" in str(
        error.value
    )

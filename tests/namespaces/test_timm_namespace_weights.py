"""The namespace `timm/`: weights and preprocessing, from timm's own caches."""

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from support.namespaces import ODD, maps_of
from support.oracles import outputs_at, randomised, timm_model
from support.server import COMMIT, Server
from torch import Tensor

from featuretap.registry import Registry
from featuretap.registry.errors import (
    WeightsError,
)
from featuretap.specs.preprocessing import Preprocessing

# Level → the module of timm's resnet18 that computes it.
LEVELS = {"C1": "act1", "C2": "layer1", "C3": "layer2", "C4": "layer3", "C5": "layer4"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where huggingface_hub, and so timm, stores downloads."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache: Path, repository: str, state: dict[str, Tensor]) -> Path:
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    save_file(state, snapshot / "model.safetensors")
    return snapshot / "model.safetensors"


@pytest.mark.parametrize(
    ("name", "pretrained", "tag"),
    [
        ("timm/resnet18", "a2_in1k", "a2_in1k"),
        ("timm/resnet18", True, "a1_in1k"),
        ("timm/resnet18.a2_in1k", True, "a2_in1k"),
        ("timm/resnet18.a2_in1k", "tv_in1k", "tv_in1k"),
    ],
)
def test_weights_are_read_from_timms_own_cache(
    registry: Registry, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, pretrained: bool | str, tag: str
) -> None:
    monkeypatch.delattr("timm.models._hub.hf_hub_download")
    whole = randomised(timm_model("resnet18")).float()
    put(cache, f"timm/resnet18.{tag}", whole.state_dict())
    backbone = registry.build(name, features_only=True, pretrained=pretrained).eval()
    images = torch.randn(1, 3, *ODD)
    expected, _ = outputs_at(whole, LEVELS.values(), images)
    for address, values in maps_of(backbone, images).items():
        torch.testing.assert_close(values, expected[LEVELS[address]])
    assert (backbone.description.name, backbone.description.weights) == ("timm/resnet18", f"timm/resnet18.{tag}")
    assert not backbone.training


def test_preprocessing_is_timms_for_the_weights(registry: Registry, cache: Path) -> None:
    put(cache, "timm/resnet18.a1_in1k", timm_model("resnet18").state_dict())
    backbone = registry.build("timm/resnet18", features_only=True, pretrained=True)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert backbone.description.preprocessing == Preprocessing(235, 224, mean, std, "bicubic")
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("resnet18.a1_in1k").to_dict())
    theirs = timm.data.create_transform(**config)
    from PIL import Image
    from skimage import data

    picture = Image.fromarray(data.chelsea())
    torch.testing.assert_close(registry.transforms(backbone)(picture), theirs(picture), rtol=0, atol=0.02)


def test_weights_are_adapted_to_other_image_channels_by_timm(registry: Registry, cache: Path) -> None:
    state = timm_model("resnet18").state_dict()
    put(cache, "timm/resnet18.a1_in1k", state)
    backbone = registry.build("timm/resnet18", features_only=True, pretrained="a1_in1k", in_chans=1)
    torch.testing.assert_close(backbone.network.conv1.weight, state["conv1.weight"].sum(1, keepdim=True))


def test_offline_missing_weights_explain_how_to_get_them(registry: Registry, cache: Path) -> None:
    with pytest.raises(WeightsError) as error:
        registry.build("timm/resnet18", features_only=True, pretrained=True)
    assert str(error.value) == (
        "'timm/resnet18.a1_in1k' is not on this machine, and FEATURETAP_OFFLINE forbids downloads; "
        "run 'hf download timm/resnet18.a1_in1k model.safetensors' with network access"
    )
    with pytest.raises(WeightsError) as error:
        registry.build("timm/legacy_seresnet18", features_only=True, pretrained=True)
    url, home = timm.get_pretrained_cfg("legacy_seresnet18").url, os.environ["TORCH_HOME"]
    assert str(error.value) == (
        "'timm/legacy_seresnet18.in1k' is not on this machine, and FEATURETAP_OFFLINE forbids downloads; "
        f"put {url} at {home}/hub/checkpoints/seresnet18-4bb0ce65.pth"
    )


def test_weights_are_read_from_torch_hubs_cache(registry: Registry) -> None:
    whole = timm_model("legacy_seresnet18")
    folder = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(whole.state_dict(), folder / "seresnet18-4bb0ce65.pth")
    backbone = registry.build("timm/legacy_seresnet18", features_only=True, pretrained=True)
    assert torch.equal(next(backbone.parameters()), next(whole.parameters()))


def test_weights_that_do_not_fit_are_refused_with_their_path(registry: Registry, cache: Path) -> None:
    path = put(cache, "timm/resnet18.a1_in1k", timm_model("resnet50").state_dict())
    with pytest.raises(WeightsError) as error:
        registry.build("timm/resnet18", features_only=True, pretrained=True)
    assert str(error.value).startswith(
        f"timm cannot load 'resnet18.a1_in1k' from {path}: Error(s) in loading state_dic"
    )
    path.write_bytes(b"no weights")
    with pytest.raises(
        WeightsError, match=r"^timm cannot load 'resnet18.a1_in1k' from .*; run 'hf download timm/resne"
    ):
        registry.build("timm/resnet18", features_only=True, pretrained=True)


def test_unknown_weights_list_the_known_ones(registry: Registry) -> None:
    with pytest.raises(LookupError) as error:
        registry.build("timm/resnet10t", features_only=True, pretrained="c4_in1k")
    assert str(error.value) == (
        "'timm/resnet10t' has no weights 'c4_in1k'; did you mean 'c3_in1k'? its tags are c3_in1k"
    )


FROM_HUB = """
import os
from featuretap import registry
for offline in "01":
    os.environ["FEATURETAP_OFFLINE"] = offline
    backbone = registry.build("timm/test_resnet", features_only=True, pretrained=True)
    print(backbone.description.weights, backbone.network.layer4[0].conv1.weight.double().sum().item())
"""


def test_timm_downloads_once_into_its_cache(tmp_path: Path) -> None:
    whole = timm_model("test_resnet")
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    expected = f"timm/test_resnet.r160_in1k {whole.layer4[0].conv1.weight.double().sum().item()}\n"
    with Server() as server:
        content = (tmp_path / "model.safetensors").read_bytes()
        server.files["/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"] = content
        settings = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": server.url}
        ran = subprocess.run([sys.executable, "-c", FROM_HUB], capture_output=True, text=True, env=settings)
        assert ran.stdout == 2 * expected, ran.stderr
        assert any("model.safetensors" in path for path in server.asked)

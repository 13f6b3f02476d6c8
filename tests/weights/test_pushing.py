"""Models are pushed to the Hugging Face hub, simulated by a local server."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from support import Completed, oracles
from support.server import TOKEN, Server
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import FeaturetapError, OptionError, WeightsError

LOGIN = "log in with 'hf auth login' and a token with write access"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A hub with a logged-in user and an empty cache."""
    monkeypatch.delenv("FEATURETAP_OFFLINE")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with Server() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


@pytest.fixture(scope="module")
def model(registry: Registry) -> nn.Module:
    return oracles.with_statistics(registry.build("mobilenet_v2_050", num_classes=3)).eval()


@pytest.mark.parametrize("layout", ["featuretap", "timm"])
def test_what_was_pushed_is_loaded_from_its_address(
    hub: Server, registry: Registry, model: nn.Module, layout: str
) -> None:
    assert registry.push(model, "somebody/flowers", layout) == f"{hub.url}/somebody/flowers"
    assert [(wanted["name"], wanted["organization"]) for wanted in hub.created] == [("flowers", "somebody")]
    image = torch.rand(2, 3, 65, 97)
    for address in ("hf://somebody/flowers", "hf-hub:somebody/flowers"):
        loaded = registry.load(address)
        assert loaded.description.num_classes == 3
        torch.testing.assert_close(loaded.eval()(image), model(image))


def test_what_was_pushed_in_timms_layout_is_loaded_by_timm(
    hub: Server, registry: Registry, model: nn.Module, tmp_path: Path
) -> None:
    registry.push(model, "somebody/flowers", "timm")
    for path, content in hub.files.items():
        (tmp_path / Path(path).name).write_bytes(content)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.rand(2, 3, 65, 97)
    torch.testing.assert_close(theirs(image), model(image), rtol=1e-4, atol=1e-4)


def test_a_file_is_pushed_on_the_command_line(
    run: Callable[..., Completed], hub: Server, registry: Registry, model: nn.Module, tmp_path: Path
) -> None:
    file = registry.save(model, tmp_path / "model.safetensors")
    ran = run("push", file, "somebody/flowers", "--private")
    assert (ran.status, ran.out) == (0, f"pushed: {hub.url}/somebody/flowers\n")
    assert hub.files["/somebody/flowers/resolve/main/model.safetensors"] == file.read_bytes()


@pytest.mark.parametrize("private", [False, True])
def test_a_repository_is_private_if_it_is_to_be(
    hub: Server, registry: Registry, model: nn.Module, private: bool
) -> None:
    registry.push(model, "somebody/flowers", private=private)
    wanted = hub.created[0]
    # The field name depends on the huggingface_hub release.
    assert (wanted.get("visibility") == "private" or wanted.get("private", False)) is private


@pytest.mark.parametrize("token", ["", "hf_thetokenofsomebodyelse"])
def test_a_refused_login_is_one_line(
    hub: Server, registry: Registry, model: nn.Module, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(WeightsError) as error:
        registry.push(model, "somebody/flowers")
    assert str(error.value) == f"cannot push to 'somebody/flowers': the hub refused the request (401); {LOGIN}"
    assert hub.files == {}


def test_a_hub_that_cannot_be_reached_is_one_line(
    hub: Server, registry: Registry, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(WeightsError, match=r"^cannot push to 'somebody/flowers': .*Connection refused$"):
        registry.push(model, "somebody/flowers")


@pytest.mark.parametrize("name", ["flowers", "a/b/c", "a/b@main", "", "/b", "a b/c", 5])
def test_a_name_that_is_not_one_of_a_repository_is_refused(
    hub: Server, registry: Registry, model: nn.Module, name: str
) -> None:
    with pytest.raises(OptionError) as error:
        registry.push(model, name)
    assert str(error.value) == f"{name!r} is not the name of a Hugging Face repository; write 'owner/name'"
    assert hub.asked == []


def test_offline_nothing_is_pushed(
    hub: Server, registry: Registry, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURETAP_OFFLINE", "1")
    with pytest.raises(WeightsError) as error:
        registry.push(model, "somebody/flowers")
    assert str(error.value) == "cannot push to 'somebody/flowers': FEATURETAP_OFFLINE is set; unset it"
    assert hub.asked == []


def test_what_cannot_be_saved_is_not_pushed(hub: Server, registry: Registry) -> None:
    with pytest.raises(FeaturetapError, match=r"registry\.save"):
        registry.push(nn.Linear(1, 1), "somebody/flowers")
    assert hub.asked == []

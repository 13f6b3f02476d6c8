"""Published weights are downloaded from local servers, stored in the usual caches and verified before use."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.server import Server

from featuretap.registry import Registry
from featuretap.registry.errors import CatalogueError, UnknownWeightsError, WeightsError
from featuretap.registry.hookspecs import WeightsEntry, hookimpl


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("FEATURETAP_OFFLINE")
    with Server() as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_packages: None) -> Path:
    """The download cache of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def mine(url: str, sha256: str, name: str = "mine.first") -> str:
    return (
        '[backbones.mine]\nbase = "mobilenet_v2"\noptions = { output_stride = 16 }\n'
        f'[weights."{name}"]\nurl = "{url}"\nsha256 = "{sha256}"\nlayout = "torchvision"\nnorm_eps = 1e-5\n'
        "default = true\n"
    )


def test_a_cached_file_is_used_and_checked(registry: Registry, official_weights: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    cached = cache / "mobilenet_v2-b0353104.pth"
    cached.symlink_to(official_weights)
    for pretrained in (True, "imagenet1k_v1", "mobilenet_v2.imagenet1k_v1"):
        model = registry.build("mobilenet_v2", features_only=True, pretrained=pretrained)
        assert model.description.weights == "mobilenet_v2.imagenet1k_v1"
    cached.unlink()
    for broken in ({"a": torch.zeros(1)}, torch.zeros(1), None):
        torch.save(broken, cached)
        with pytest.raises(WeightsError) as error:
            registry.build("mobilenet_v2", pretrained=True)
        digest = hashlib.sha256(cached.read_bytes()).hexdigest()
        assert str(error.value) == (
            f"{cached} is not 'mobilenet_v2.imagenet1k_v1': its SHA-256 begins with {digest[:8]}, expected b0353104; "
            "delete it to download it again"
        )


def test_a_download_is_checked_and_kept(
    served: Server, cache: Path, configured: Callable[[str], Registry], official_weights: Path
) -> None:
    content = official_weights.read_bytes()
    served.files["/net.pth"] = content
    digest = hashlib.sha256(content).hexdigest()
    registry = configured(mine(f"{served.url}/net.pth", digest))
    for _ in range(2):
        model = registry.build("mine", features_only=True, pretrained=True)
        assert model.description.weights == "mine.first"
    assert (cache / "net-b0353104.pth").read_bytes() == content
    assert served.asked == ["/net.pth"]


def test_entries_with_equal_file_names_do_not_collide_in_the_cache(
    served: Server, cache: Path, configured: Callable[[str], Registry], official_weights: Path
) -> None:
    content = official_weights.read_bytes()
    served.files["/right/model.pth"] = content
    cache.mkdir(parents=True)
    (cache / "model.pth").write_bytes(b"somebody else's")
    digest = hashlib.sha256(content).hexdigest()
    configured(mine(f"{served.url}/right/model.pth", digest)).build("mine", features_only=True, pretrained=True)
    assert (cache / "model.pth").read_bytes() == b"somebody else's"


def test_a_download_with_another_hash_is_refused_and_not_kept(
    served: Server, cache: Path, configured: Callable[[str], Registry]
) -> None:
    served.files["/net.pth"] = b"something else"
    with pytest.raises(WeightsError, match=r"cannot download 'mine.first' from http.*: invalid hash value"):
        configured(mine(f"{served.url}/net.pth", "0" * 64)).build("mine", pretrained=True)
    assert list(cache.iterdir()) == []


def test_a_failed_download_explains_what_was_tried_and_what_to_do(
    served: Server, cache: Path, configured: Callable[[str], Registry], official_weights: Path
) -> None:
    registry = configured(mine(f"{served.url}/absent.pth", "0" * 64))
    message = (
        f"cannot download 'mine.first' from {served.url}/absent.pth: HTTP Error 404: File not found; {{}}; "
        f"put the file at {cache}/absent-00000000.pth, or pass its path as pretrained="
    )
    with pytest.raises(WeightsError) as error:
        registry.build("mine", pretrained=True)
    assert str(error.value) == message.format("no published weights are available locally")
    shutil.copy(official_weights, cache / "mobilenet_v2-b0353104.pth")
    with pytest.raises(WeightsError) as error:
        registry.build("mine", pretrained=True)
    assert str(error.value) == message.format("available locally: mobilenet_v2.imagenet1k_v1")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/net.pth", "http://[::1]:1/net.pth", "http://127.0.0.1:99999/net.pth"]
)
def test_unreachable_addresses_raise_a_weights_error(
    served: Server, cache: Path, configured: Callable[[str], Registry], url: str
) -> None:
    with pytest.raises(WeightsError, match=r"cannot download 'mine.first' from http"):
        configured(mine(url, "0" * 64)).build("mine", pretrained=True)


def test_offline_nothing_is_requested(
    served: Server, cache: Path, configured: Callable[[str], Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURETAP_OFFLINE", "1")
    with pytest.raises(WeightsError) as error:
        configured(mine(f"{served.url}/net.pth", "0" * 64)).build("mine", pretrained=True)
    assert str(error.value) == (
        "'mine.first' is not available locally, and FEATURETAP_OFFLINE disables downloads; "
        "no published weights are available locally; "
        f"put the file at {cache}/net-00000000.pth, or pass its path as pretrained="
    )
    with pytest.raises(WeightsError, match=r"run 'hf download timm/mobilenetv1_100.ra4_e3600_r224_in1k model.safet"):
        configured("").build("mobilenet_v1", pretrained=True)
    assert served.asked == []


def test_a_mirror_changes_the_address_but_not_the_hash(
    served: Server, cache: Path, configured: Callable[[str], Registry], official_weights: Path
) -> None:
    mirror = f'[mirrors]\n"https://download.pytorch.org/models" = "{served.url}/mirror"\n'
    served.files["/mirror/mobilenet_v2-b0353104.pth"] = b"another file"
    with pytest.raises(WeightsError, match=r"from http://127.*/mirror/mobilenet_v2-b0353104.pth: invalid hash value"):
        configured(mirror).build("mobilenet_v2", pretrained=True)
    served.files["/mirror/mobilenet_v2-b0353104.pth"] = official_weights.read_bytes()
    model = configured(mirror).build("mobilenet_v2", features_only=True, pretrained=True)
    assert model.description.weights == "mobilenet_v2.imagenet1k_v1"


def test_a_users_entry_cannot_replace_a_published_one(configured: Callable[[str], Registry]) -> None:
    text = '[weights."mobilenetv2.imagenet1k_v1"]\nurl = "https://x.org/a.pth"\nsha256 = "00000000"\n'
    registry = configured(f'{text}layout = "torchvision"\nnorm_eps = 1e-5\n')
    with pytest.raises(
        CatalogueError,
        match=r"weights.mobilenet_v2.imagenet1k_v1 would replace the entry of "
        r"'featuretap'",
    ):
        registry.list_weights()


def test_a_users_entry_for_an_alias_is_found_and_its_default_wins(
    served: Server, cache: Path, configured: Callable[[str], Registry], official_weights: Path
) -> None:
    content = official_weights.read_bytes()
    served.files["/ours.pth"] = content
    digest = hashlib.sha256(content).hexdigest()
    registry = configured(mine(f"{served.url}/ours.pth", digest, "mobilenetv2_100.ours"))
    assert [entry.tag for entry in registry.weights_of("mobilenet_v2")][:2] == ["ours", "imagenet1k_v1"]
    model = registry.build("mobilenet_v2", features_only=True, pretrained=True)
    assert model.description.weights == "mobilenet_v2.ours"


def test_a_variant_that_changes_no_tensor_has_the_weights_of_its_base(
    configured: Callable[[str], Registry], official_weights: Path, cache: Path
) -> None:
    cache.mkdir(parents=True)
    shutil.copy(official_weights, cache / "mobilenet_v2-b0353104.pth")
    registry = configured(
        '[backbones.dense]\nbase = "mobilenet_v2"\noptions = { output_stride = 8 }\n'
        '[backbones.narrow]\nbase = "mobilenet_v2"\noptions = { width = 0.5 }\n'
    )
    backbone = registry.build("dense", features_only=True, pretrained=True)
    assert backbone.description.weights == "mobilenet_v2.imagenet1k_v1"
    assert registry.weights_of("narrow") == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[weights.'nowhere.tag']", "weights.nowhere.tag cannot be used: no backbone named 'nowhere'"),
        ('sha256 = ""', "weights.\"mobilenet_v2.mine\".sha256 must be 8 to 64 lower-case hexadecimal digits; got ''"),
        (
            'layout = "timmm"',
            "weights.mobilenet_v2.mine.layout is 'timmm', which 'mobilenet_v2' does not support; did you mean 'timm'? "
            "supported: featuretap, torchvision, timm",
        ),
        (
            'url = "ftp://x.org/a.pth"',
            "weights 'mobilenet_v2.mine': url 'ftp://x.org/a.pth' is not the address of a file; write",
        ),
        (
            'url = "https://x.org/"',
            "weights 'mobilenet_v2.mine': url 'https://x.org/' is not the address of a file; write",
        ),
        (
            'url = "http://[::1/net.pth"',
            "weights 'mobilenet_v2.mine': url 'http://[::1/net.pth' is not the address of a file; write",
        ),
        (
            'url = "hf://timm/model"',
            "weights 'mobilenet_v2.mine': url 'hf://timm/model' is not the address of a file; write",
        ),
        (
            'url = "hf-hub:timm/model"',
            "url 'hf-hub:timm/model' is not the address of a file; write https://host/file, ",
        ),
        ('url = "pkg://packed"', "url 'pkg://packed' is not the address of a file; write https://host/file, "),
        ('url = "pkg://packed/a/../../b.pth"', "url 'pkg://packed/a/../../b.pth' is not the address of a file; write"),
        ('url = "pkg://packed//etc/b.pth"', "url 'pkg://packed//etc/b.pth' is not the address of a file; write"),
        (
            'urls = ["https://x.org/b.pth"]',
            'weights."mobilenet_v2.mine" has both url and urls; list all addresses in urls',
        ),
        ("norm_eps = 2.0", "weights 'mobilenet_v2.mine': norm_eps must be a number between 0 and 1; got 2.0"),
        ("norm_eps = inf", 'weights."mobilenet_v2.mine".norm_eps must be a positive number; got inf'),
        (
            "preprocessing = { mean = [0.5] }",
            "preprocessing has 1 values in mean and 3 in std; give one for each channel",
        ),
    ],
)
def test_invalid_entries_are_refused(configured: Callable[[str], Registry], line: str, message: str) -> None:
    lines = {"url": '"https://x.org/a.pth"', "sha256": '"00000000"', "layout": '"torchvision"', "norm_eps": "1e-5"}
    key, _, value = line.partition(" = ")
    head = '[weights."mobilenet_v2.mine"]'
    if value:
        lines[key] = value
    else:
        head = line
    text = head + "\n" + "\n".join(f"{key} = {value}" for key, value in lines.items()) + "\n"
    with pytest.raises(CatalogueError) as error:
        configured(text).list_weights()
    assert message in str(error.value)


def test_two_defaults_in_one_file_are_refused(configured: Callable[[str], Registry]) -> None:
    entry = '[weights."{}"]\nurl = "https://x.org/a.pth"\nsha256 = "00000000"\nlayout = "timm"\nnorm_eps = 1e-5\n'
    text = "".join(entry.format(name) + "default = true\n" for name in ("mobilenet_v2.a", "mobilenetv2.b"))
    with pytest.raises(
        CatalogueError,
        match=r"toml: 'mobilenet_v2' has two default weights; keep default = true "
        r"for one$",
    ):
        configured(text).list_weights()


def test_means_of_zero_are_kept() -> None:
    entry = next(
        entry for entry in Registry(discover=False).published_weights if entry.name.endswith("miil_in21k_ft_in1k")
    )
    assert (entry.preprocessing.mean, entry.preprocessing.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_a_plugins_entry_must_state_a_digest_unless_the_hub_does() -> None:
    with pytest.raises(CatalogueError, match=r"weights 'a.b': sha256 must be 8 to 64 lower-case hexadecimal digits"):
        WeightsEntry("a.b", "https://x.org/a.pth", "", "torchvision", 1e-5)
    assert WeightsEntry("a.b", "hf://a/b/c.safetensors", "", "timm", 1e-5).sha256 == ""


def test_weights_that_two_plugins_provide_are_ambiguous() -> None:
    class Claims:
        def __init__(self, name: str) -> None:
            self.__name__ = name

        @hookimpl
        def featuretap_weights(self) -> list[WeightsEntry]:
            url = f"https://x.org/{self.__name__}.pth"
            return [WeightsEntry("mobilenet_v1_025.mine", url, "00000000", "timm", 1e-5, default=True)]

    registry = Registry(plugins=[Claims("one"), Claims("other")], discover=False)
    assert registry.weights_of("mobilenet_v1_025") == ()
    for pretrained in ("mine", "mobilenet_v1_025.mine"):
        with pytest.raises(UnknownWeightsError) as error:
            registry.build("mobilenet_v1_025", pretrained=pretrained)
        assert str(error.value) == (
            "2 plugins provide weights 'mine' for 'mobilenet_v1_025'; choose one: 'one:mine' or 'other:mine'"
        )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The download cache of huggingface_hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "huggingface" / "hub"))
    return tmp_path / "huggingface" / "hub"


FROM_HUB = """
from featuretap import registry
model = registry.build("mobilenet_v2_050", pretrained=True)
print(model.description.weights, model.head.logits.weight.double().sum().item())
"""


def test_the_hub_is_accessed_through_huggingface_hub_and_its_cache(
    served: Server,
    hub: Path,
    registry: Registry,
    configured: Callable[[str], Registry],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = registry.build("mobilenet_v2_050")
    content = registry.save(model, tmp_path / "timm.safetensors", "timm").read_bytes()
    served.files["/timm/mobilenetv2_050.lamb_in1k/resolve/main/model.safetensors"] = content
    logits = model.head.logits.weight
    built = configured(f'[mirrors]\n"https://huggingface.co" = "{served.url}"\n').build(
        "mobilenet_v2_050", pretrained=True
    )
    assert built.description.weights == "mobilenet_v2_050.lamb_in1k"
    assert torch.equal(built.head.logits.weight, logits)
    asked = len(served.asked)
    assert asked > 0
    # From here on the weights are served from the cache, even without a network.
    for offline in ("0", "1"):
        monkeypatch.setenv("FEATURETAP_OFFLINE", offline)
        assert torch.equal(configured("").build("mobilenet_v2_050", pretrained=True).head.logits.weight, logits)
    # huggingface_hub reads HF_HOME at import time.
    settings = {**os.environ, "HF_HOME": str(hub.parent)}
    ran = subprocess.run([sys.executable, "-c", FROM_HUB], capture_output=True, text=True, env=settings)
    assert ran.stdout == f"mobilenet_v2_050.lamb_in1k {logits.double().sum().item()}\n", ran.stderr
    assert len(served.asked) == asked
    # A cached blob whose content does not match its digest is refused.
    (stored,) = hub.glob("models--*/blobs/*")
    stored.chmod(0o644)
    stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WeightsError, match=r"is not 'mobilenet_v2_050.lamb_in1k': its SHA-256 begins with"):
        configured("").build("mobilenet_v2_050", pretrained=True)


@pytest.mark.usefixtures("hub", "cache")
def test_a_file_missing_from_the_hub_explains_how_to_get_it(
    served: Server, configured: Callable[[str], Registry]
) -> None:
    mine = configured(f'[mirrors]\n"https://huggingface.co" = "{served.url}"\n')
    with pytest.raises(WeightsError) as error:
        mine.build("mobilenet_v2_050", pretrained=True)
    assert str(error.value).startswith("cannot download 'mobilenet_v2_050.lamb_in1k' from hf://")
    assert str(error.value).endswith(
        "; no published weights are available locally; run 'hf download timm/mobilenetv2_050.lamb_in1k "
        "model.safetensors' with network access, or pass its path as pretrained="
    )


def test_every_catalogue_entry_is_complete(registry: Registry) -> None:
    for entry in registry.published_weights:
        assert entry.url.startswith(("https://download.pytorch.org/models/", "hf://timm/", "pkg://"))
        assert entry.license in ("BSD-3-Clause", "Apache-2.0", "MIT")
        assert entry.megabytes > 5
        low, high = (60, 80) if entry.head == "classification" else (20, 61)
        assert entry.accuracy is None or low < entry.accuracy < high
        assert entry.layout in registry.backbone(entry.backbone).layouts
    assert len(registry.published_weights) == 28


@pytest.mark.parametrize(
    "settings",
    [{}, {"TORCH_HOME": "/somewhere"}, {"TORCH_HOME": "~/home"}, {"XDG_CACHE_HOME": "/cache"}],
    ids=lambda settings: " ".join(settings),
)
def test_the_cache_without_torch_is_that_of_torch_hub(settings: dict[str, str]) -> None:
    code = (
        "import sys; from featuretap.weights.downloads import torch_hub_path as path; before = "
        "path('https://x.org/a.b')\n"
        "assert 'torch' not in sys.modules; import torch; print(before == path('https://x.org/a.b'), before)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("TORCH_HOME", "XDG_CACHE_HOME")}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**environment, **settings})
    assert ran.stdout.startswith("True /"), ran.stderr
    assert ran.stdout.endswith("/hub/checkpoints/a.b\n")

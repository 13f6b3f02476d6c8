"""URLs and hub addresses work wherever a weights path does, and each is downloaded once."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import Completed, oracles
from support.packed_weights import ADDRESS, write_packed
from support.server import COMMIT, Server
from torch import nn

from featuretap import registry as functions
from featuretap.registry import Registry
from featuretap.registry.errors import FeaturetapError, UnknownWeightsError, WeightsError
from featuretap.workflows.training.configuration import make_configuration
from featuretap.workflows.training.models import resolve_model

NAME = "mobilenet_v1_025"
FILE = "v1.safetensors"
FLOWERS = "/somebody/flowers/resolve/main"

pytestmark = pytest.mark.usefixtures("hub_cache")


@pytest.fixture(scope="module")
def model(registry: Registry) -> nn.Module:
    return oracles.with_statistics(registry.build(NAME, num_classes=10)).eval()


@pytest.fixture(scope="module")
def saved(registry: Registry, model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return registry.save(model, tmp_path_factory.mktemp("saved") / FILE)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download cache for huggingface_hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, saved: Path, tmp_path: Path) -> Iterator[Server]:
    """A web server and a hub that both serve the weights; the installed distribution `packed` contains them too."""
    monkeypatch.delenv("FEATURETAP_OFFLINE")
    monkeypatch.syspath_prepend(tmp_path / "site")
    write_packed(tmp_path / "site", saved.read_bytes())
    with Server() as server:
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        for path in (f"/{FILE}", f"{FLOWERS}/model.safetensors", f"{FLOWERS}/deep/{FILE}"):
            server.files[path] = saved.read_bytes()
        yield server


def address_of(kind: str, server: Server, saved: Path) -> str:
    return {"web": f"{server.url}/{FILE}", "file": saved.as_uri()}.get(kind, kind)


ADDRESSES = (
    "web",
    "file",
    ADDRESS,
    "hf://somebody/flowers",
    "hf://somebody/flowers@v1",
    f"hf://somebody/flowers@{COMMIT}",
    "hf://somebody/flowers/model.safetensors",
    f"hf://somebody/flowers@v1/deep/{FILE}",
    f"hf://somebody/flowers/deep/{FILE}@v1",
    "hf-hub:somebody/flowers",
    "hf-hub:somebody/flowers@v1",
)


@pytest.mark.parametrize("kind", ADDRESSES)
def test_the_model_at_an_address_is_that_of_the_file(
    server: Server, registry: Registry, saved: Path, model: nn.Module, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(2, 3, 65, 97)
    address = address_of(kind, server, saved)
    for offline in ("0", "1"):
        # The second load is served from the cache.
        monkeypatch.setenv("FEATURETAP_OFFLINE", offline)
        assert torch.equal(registry.load(address).eval()(image), model(image))
    built = registry.build(NAME, pretrained=address, num_classes=10).eval()
    assert torch.equal(built(image), model(image))


def load(address: str, folder: Path) -> object:
    return functions.load(address).description.name


def build(address: str, folder: Path) -> object:
    return functions.build(NAME, features_only=True, pretrained=address).description.name


def convert(address: str, folder: Path) -> object:
    return functions.load(functions.convert(address, folder / "converted.safetensors")).description.name


def session(address: str, folder: Path) -> object:
    return functions.session(address).description.name


def session_of_a_name(address: str, folder: Path) -> object:
    return functions.session(NAME, features_only=True, pretrained=address).description.name


def export(address: str, folder: Path) -> object:
    return functions.session(functions.export(address, folder / "exported.onnx")).description.name


def train(address: str, folder: Path) -> object:
    return resolve_model(make_configuration({"data": "digits", "weights": address}))[0].backbone


@pytest.mark.parametrize("kind", ["web", "hf-hub:somebody/flowers"])
@pytest.mark.parametrize("use", [load, build, convert, session, session_of_a_name, export, train])
def test_an_address_is_a_path_to_every_function(
    server: Server, saved: Path, tmp_path: Path, kind: str, use: Callable[[str, Path], object]
) -> None:
    assert use(address_of(kind, server, saved), tmp_path) == NAME


@pytest.mark.parametrize(
    "words",
    [
        "inspect ADDRESS",
        "convert ADDRESS converted.safetensors",
        "export ADDRESS exported.onnx",
        "save mobilenet_v1_025 saved.safetensors --weights ADDRESS --num-classes 10",
        "predict cat.png --weights ADDRESS",
        "predict cat.png --weights ADDRESS --torch",
        "taps cat.png --model mobilenet_v1_025 --weights ADDRESS",
        "extract cat.png --weights ADDRESS --out features",
    ],
)
def test_an_address_is_a_path_to_every_command(
    run: Callable[..., Completed], server: Server, cat: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.chdir(cat.parent)
    ran = run(*words.replace("ADDRESS", "hf://somebody/flowers").split())
    assert ran.status == 0, ran.err
    assert f"{FLOWERS}/model.safetensors" in server.asked


def test_files_of_one_name_at_different_urls_do_not_collide(
    server: Server, registry: Registry, saved: Path, tmp_path: Path
) -> None:
    other = registry.save(registry.build(NAME, num_classes=3), tmp_path / FILE)
    server.files[f"/other/{FILE}"] = server.files[f"/other/{FILE}?of=them"] = other.read_bytes()
    urls = [f"{server.url}/{path}" for path in (FILE, f"other/{FILE}", f"other/{FILE}?of=them")]
    for _ in range(2):
        assert [registry.load(url).description.num_classes for url in urls] == [10, 3, 3]
    assert len(server.asked) == 3


def test_the_config_beside_the_weights_in_a_repository_is_read(
    server: Server, registry: Registry, tmp_path: Path
) -> None:
    folder = registry.save(registry.build("mobilenet_v2_050", num_classes=3, output_stride=16), tmp_path / "t", "timm")
    for path in folder.parent.iterdir():
        server.files[f"/somebody/else/resolve/main/{path.name}"] = path.read_bytes()
    description = registry.load("hf://somebody/else").description
    assert (description.options["output_stride"], description.num_classes) == (16, 3)


def test_weights_in_several_files_of_a_repository_are_fetched_together(
    server: Server, registry: Registry, saved: Path, model: nn.Module, tmp_path: Path
) -> None:
    tensors = load_file(saved)
    names = sorted(tensors)
    shards = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, tmp_path / shard)
        server.files[f"/somebody/parts/resolve/main/{shard}"] = (tmp_path / shard).read_bytes()
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    server.files["/somebody/parts/resolve/main/model.safetensors.index.json"] = json.dumps(index).encode()
    image = torch.rand(2, 3, 65, 97)
    assert torch.equal(registry.load("hf://somebody/parts", name=NAME).eval()(image), model(image))


def test_a_mirror_is_asked_in_place_of_a_url(server: Server, configured: Callable[[str], Registry]) -> None:
    mine = configured(f'[mirrors]\n"https://weights.example.org" = "{server.url}"\n')
    assert mine.load(f"https://weights.example.org/{FILE}").description.name == NAME


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("web/absent.pth", "HTTP Error 404: File not found"),
        (
            "hf://nobody/nothing",
            "the repository does not exist or is private; check the name, or log in with 'hf auth login'",
        ),
        ("hf://somebody/flowers@v9", "the repository has no revision 'v9'"),
        ("hf://somebody/flowers/absent.pth", "the repository has no such file"),
        ("hf://somebody/empty", "the repository has no such file"),
    ],
)
def test_what_cannot_be_fetched_is_explained(server: Server, registry: Registry, address: str, reason: str) -> None:
    server.files["/somebody/empty/resolve/main/README.md"] = b"nothing else"
    address = address.replace("web", server.url)
    with pytest.raises(WeightsError) as error:
        registry.load(address)
    assert str(error.value) == f"cannot download {address!r}: {reason}"


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.pth", "hf://somebody/flowers"])
def test_a_server_that_cannot_be_reached_is_explained(
    server: Server, registry: Registry, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    # huggingface_hub sleeps between retries.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(WeightsError, match=rf"^cannot download '{address}': .*Connection refused>?$"):
        registry.load(address)


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("https://x.org/a/net.pth", r"put the file at /.*/hub/checkpoints/net-[\da-f]{8}\.pth"),
        ("hf://a/b", "run 'hf download a/b' with network access"),
        ("hf-hub:a/b@v1", "run 'hf download a/b --revision v1' with network access"),
        ("hf://a/b/net.pth", "run 'hf download a/b net.pth' with network access"),
    ],
)
def test_offline_nothing_is_asked_and_the_way_is_named(registry: Registry, address: str, advice: str) -> None:
    with pytest.raises(WeightsError, match=rf"; {advice}$") as error:
        registry.load(address)
    assert str(error.value).startswith(
        f"{address!r} is not available locally, and FEATURETAP_OFFLINE disables downloads; "
    )


@pytest.mark.parametrize(
    "address",
    ["hf://timm", "hf-hub:timm", "https://x.org", "hf://a/b/", "hf://a/b@/c", "hf://a/b@v1/c.pth@v2", "file://"],
)
def test_what_only_looks_like_an_address_is_refused(registry: Registry, address: str) -> None:
    with pytest.raises(WeightsError, match="is not a valid address; write https://host/file, file:///path, hf://"):
        registry.load(address)


def test_other_schemes_are_no_addresses(registry: Registry) -> None:
    with pytest.raises(UnknownWeightsError, match="'mobilenet_v2' has no weights 's3:x'; its tags are"):
        registry.build("mobilenet_v2", pretrained="s3:x")


def test_no_code_of_a_checkpoint_from_the_network_is_run(server: Server, registry: Registry, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return Path.touch, (tmp_path / "run",)  # type: ignore[return-value]

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    server.files["/evil.pth"] = (tmp_path / "evil.pth").read_bytes()
    with pytest.raises(WeightsError):
        registry.load(f"{server.url}/evil.pth")
    assert not (tmp_path / "run").exists()


def test_without_huggingface_hub_the_error_says_what_to_install(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featuretap.support.extras.find_spec", lambda name: None)
    with pytest.raises(FeaturetapError) as error:
        registry.load("hf://somebody/flowers")
    assert str(error.value) == "'hf://somebody/flowers' needs huggingface_hub; run pip install huggingface_hub"


def test_a_path_needs_nothing_that_knows_the_network(saved: Path) -> None:
    code = (
        "import sys; from featuretap.weights.downloads import find_or_fetch\n"
        f"find_or_fetch({str(saved)!r}, {{}})\nprint({{'huggingface_hub', 'urllib.request'}} & {{*sys.modules}})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"

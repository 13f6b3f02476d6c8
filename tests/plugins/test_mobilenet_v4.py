"""MobileNetV4 as a distribution of its own adds it (examples/featuretap-mobilenet-v4), held against timm's."""

import hashlib
import io
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from math import floor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from support import ROOT, oracles
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.hookspecs import WeightsEntry, hookimpl
from featuretap.registry.specs import BackboneSpec, Convolution, ModelSpec
from featuretap.registry.weights.network import network_digest
from featuretap.registry.weights.reading import read
from featuretap.registry.weights.restoring import record_of

EXAMPLE = ROOT / "examples" / "featuretap-mobilenet-v4"

NAMES = ["mobilenet_v4_conv_small", "mobilenet_v4_conv_medium"]
TIMM = {
    "mobilenet_v4_conv_small": "mobilenetv4_conv_small",
    "mobilenet_v4_conv_small_050": "mobilenetv4_conv_small_050",
    "mobilenet_v4_conv_medium": "mobilenetv4_conv_medium",
}
LEVELS = {"C1": "bn1", "C2": "blocks.0", "C3": "blocks.1", "C4": "blocks.2", "C5": "blocks.4"}
INNER = {
    "C3.expansion": "blocks.2.0.pw_exp",
    "C4.expansion": "blocks.3.0.pw_exp",
    "C4.first": "blocks.2.0",
    "C5.bottleneck": "blocks.3",
}
MODULES = {
    "mobilenet_v4_conv_small": {**LEVELS, **INNER, "C3.bottleneck": "blocks.1.0", "C5.depthwise": "blocks.3.5.dw_mid"},
    "mobilenet_v4_conv_small_050": {**LEVELS, **INNER},
    "mobilenet_v4_conv_medium": {
        **LEVELS,
        **INNER,
        "C2.expansion": "blocks.1.0.pw_exp",
        "C3.depthwise": "blocks.1.1.dw_mid",
    },
}
"""Address → the submodule of timm's model whose output it is, written by hand from the printed modules."""

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
SIZE = (2, 3, 97, 161)

OPTIONS: list[dict[str, Any]] = [
    {},
    {"output_stride": 16},
    {"output_stride": 8, "dilate_entry": True},
    {"width": 0.5},
    {"width": 1.3},
    {"reduced_tail": True},
    {"reduced_tail": "segmentation"},
    {"in_channels": 1},
    {"num_classes": 0},
    {"features_only": True, "taps": ("C3", "C5")},
    {"features_only": True, "taps": ("C4.expansion", "C2")},
    {"width": 0.75, "reduced_tail": True, "output_stride": 16, "in_channels": 4},
]


def plugin() -> ModuleType:
    """Return the example's plugin, which need not be installed."""
    if str(EXAMPLE) not in sys.path:
        sys.path.insert(0, str(EXAMPLE))
    return import_module("featuretap_mobilenet_v4.plugin")


@pytest.fixture(scope="module")
def registry() -> Registry:
    """Our own plugin and the example's."""
    return Registry(plugins=[plugin()], discover=False)


def epsilons(model: nn.Module) -> set[float]:
    return {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)}


def with_timms_weights(registry: Registry, name: str, theirs: nn.Module, path: Path, **options: Any) -> nn.Module:
    """Build ours from a file of timm's tensors, in double precision."""
    safetensors.torch.save_file(oracles.randomised(theirs).state_dict(), path)
    return registry.build(name, pretrained=path, **options).double().eval()


# --- Numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "macs", "channels"),
    [
        ("mobilenet_v4_conv_small", 3_774_024, 186_005_568, (32, 32, 64, 96, 960)),
        ("mobilenet_v4_conv_small_050", 2_238_952, 64_741_408, (32, 16, 32, 48, 480)),
        ("mobilenet_v4_conv_medium", 9_715_512, 827_649_984, (32, 48, 80, 160, 960)),
    ],
)
def test_it_counts_as_published(
    registry: Registry, name: str, parameters: int, macs: int, channels: tuple[int, ...]
) -> None:
    spec = registry.spec(name)
    assert (spec.parameters, spec.macs(224, 224)) == (parameters, macs)
    assert tuple(tap.channels for tap in spec.taps.values()) == channels
    assert tuple(tap.stride for tap in spec.taps.values()) == (2, 4, 8, 16, 32)
    assert sum(parameter.numel() for parameter in timm.create_model(TIMM[name]).parameters()) == parameters


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_counted_is_what_is_built(registry: Registry, name: str, options: dict[str, Any]) -> None:
    spec, model = registry.spec(name, **options), registry.build(name, **options).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters
    backbone = model if options.get("features_only") else model.backbone
    with torch.no_grad():
        maps = backbone(torch.zeros(1, options.get("in_channels", 3), 97, 161))
    declared = spec.backbone if isinstance(spec, ModelSpec) else spec
    assert {tap: tuple(map_.shape[1:]) for tap, map_ in maps.items()} == declared.tap_shapes(97, 161)
    assert list(maps) == list(options.get("taps", declared.taps))


def test_a_hidden_norm_counts_gamma_and_beta_and_no_multiply_adds(registry: Registry) -> None:
    whole, features = registry.spec(NAMES[0]), registry.spec(NAMES[0], features_only=True)
    assert whole.parameters - features.parameters == 960 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert whole.macs(224, 224) - features.macs(224, 224) == 960 * 1280 + 1280 * 1000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "entering"), [(True, {480, 576, 960}), ("segmentation", {288, 480})])
def test_a_reduced_tail_halves_all_behind_c4(registry: Registry, name: str, kind: Any, entering: set[int]) -> None:
    spec = registry.spec(
        name, reduced_tail=kind, features_only=True, taps=("C4", "C4.expansion", "C5.bottleneck", "C5")
    )
    c4, expansion, bottleneck, c5 = (tap.channels for tap in spec.taps.values())
    assert (c4, bottleneck, c5) == ((96, 64, 480) if name.endswith("small") else (160, 128, 480))
    assert expansion in entering
    assert registry.spec(name, reduced_tail=kind, num_classes=0).parameters == sum(
        parameter.numel() for parameter in registry.build(name, reduced_tail=kind, num_classes=0).parameters()
    )


@pytest.mark.parametrize(
    ("output_stride", "expected"), [(32, ({1}, {1}, {1}, {1})), (16, ({1}, {1}, {1}, {2})), (8, ({1}, {2}, {2}, {4}))]
)
def test_both_depthwise_layers_of_a_block_dilate(
    registry: Registry, output_stride: int, expected: tuple[set[int], ...]
) -> None:
    spec = registry.spec("mobilenet_v4_conv_medium", features_only=True, output_stride=output_stride)
    assert isinstance(spec, BackboneSpec)
    c4, c5 = ([block for block in spec.blocks if block.level == level] for level in ("C4", "C5"))
    dilations = tuple(
        {
            layer.dilation
            for block in blocks
            for layer in block.layers
            if isinstance(layer, Convolution) and layer.kernel > 1
        }
        for blocks in (c4[:1], c4[1:], c5[:1], c5[1:])
    )
    assert dilations == expected


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("name", NAMES)
def test_maps_at_a_smaller_output_stride_subsampled_are_the_plain_maps(
    registry: Registry, name: str, output_stride: int
) -> None:
    plain = registry.build(name, features_only=True).double().eval()
    dilated = registry.build(name, features_only=True, output_stride=output_stride).double().eval()
    dilated.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 97, 161, dtype=torch.float64)
    with torch.no_grad():
        expected, maps = plain(images), dilated(images)
    for address, values in maps.items():
        step = plain.taps[address].stride // dilated.taps[address].stride
        torch.testing.assert_close(values[..., ::step, ::step], expected[address], **CLOSE)


# --- Equality with timm -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_every_tap_and_the_logits_equal_timms(registry: Registry, tmp_path: Path, name: str) -> None:
    theirs, modules = oracles.timm_model(TIMM[name]), MODULES[name]
    model = with_timms_weights(registry, name, theirs, tmp_path / "file.safetensors")
    features = with_timms_weights(
        registry, name, theirs, tmp_path / "file.safetensors", features_only=True, taps=tuple(modules)
    )
    images = torch.randn(SIZE, dtype=torch.float64)
    expected, logits = oracles.outputs_at(theirs, modules.values(), images)
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits, **CLOSE)
        maps = features(images)
    assert list(maps) == list(modules)
    for address, module in modules.items():
        torch.testing.assert_close(maps[address], expected[module], **CLOSE, msg=lambda m, a=address: f"{a}: {m}")
    assert epsilons(model) == {1e-5}


def test_a_wrong_eps_of_the_hidden_norm_would_be_noticed(registry: Registry, tmp_path: Path) -> None:
    theirs = oracles.timm_model("mobilenetv4_conv_small")
    model = with_timms_weights(registry, "mobilenet_v4_conv_small", theirs, tmp_path / "file.safetensors")
    model.head.norm.eps = 1e-6
    images = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        assert (model(images) - theirs(images)).abs().max() > 1e-7


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("name", NAMES)
def test_output_strides_equal_timms(registry: Registry, tmp_path: Path, name: str, output_stride: int) -> None:
    theirs = oracles.timm_model(TIMM[name], output_stride=output_stride, features_only=True)
    # timm's feature extractor keeps the stem's activation apart.
    modules = {**MODULES[name], "C1": "act1"}
    ours = with_timms_weights(
        registry,
        name,
        theirs,
        tmp_path / "file.safetensors",
        features_only=True,
        taps=tuple(modules),
        output_stride=output_stride,
    )
    images = torch.randn(SIZE, dtype=torch.float64)
    expected, _ = oracles.outputs_at(theirs, modules.values(), images)
    with torch.no_grad():
        maps = ours(images)
    for address, module in modules.items():
        torch.testing.assert_close(maps[address], expected[module], **CLOSE, msg=lambda m, a=address: f"{a}: {m}")


@pytest.mark.parametrize("name", NAMES)
def test_pooled_features_without_classes_equal_timms(registry: Registry, tmp_path: Path, name: str) -> None:
    theirs = oracles.timm_model(TIMM[name], num_classes=0)
    ours = with_timms_weights(registry, name, theirs, tmp_path / "file.safetensors", num_classes=0)
    images = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), **CLOSE)
        assert ours(images).shape == (2, 1280)


# --- Files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TIMM)
def test_timms_files_are_recognised(registry: Registry, tmp_path: Path, name: str) -> None:
    theirs = oracles.randomised(oracles.timm_model(TIMM[name], num_classes=7))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "file.safetensors")
    ours = registry.load(tmp_path / "file.safetensors")
    assert (ours.description.name, ours.description.num_classes) == (name, 7)
    images = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs(images), **CLOSE)


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_the_epsilon_of_timms_folder_is_that_of_the_hidden_norm_too(
    registry: Registry, tmp_path: Path, eps: float | None
) -> None:
    registry.save(registry.build("mobilenet_v4_conv_small"), tmp_path / "folder", "timm")
    tensors = safetensors.torch.load_file(tmp_path / "folder" / "model.safetensors")
    safetensors.torch.save_file(tensors, tmp_path / "folder" / "model.safetensors")
    config = tmp_path / "folder" / "config.json"
    if eps is not None:
        config.write_text(config.read_text().replace('"model_args": {}', f'"model_args": {{"bn_eps": {eps}}}'))
    for model in (
        registry.load(tmp_path / "folder"),
        registry.build("mobilenet_v4_conv_small", pretrained=tmp_path / "folder"),
    ):
        assert epsilons(model) == {eps or 1e-5}


def test_the_epsilon_of_published_weights_is_that_of_the_hidden_norm_too(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(registry.build("mobilenet_v4_conv_small"), tmp_path / "file.safetensors", "timm")
    safetensors.torch.save_file(safetensors.torch.load_file(path), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    class Publisher:
        @hookimpl
        def featuretap_weights(self) -> list[WeightsEntry]:
            return [WeightsEntry("mobilenet_v4_conv_small.mine", path.as_uri(), digest, "timm", norm_eps=1e-3)]

    assert record_of(read(path), registry).norm_eps == {"backbone": 1e-5, "head": 1e-5}
    known = Registry(plugins=[plugin(), Publisher()], discover=False)
    assert record_of(read(path), known).norm_eps == {"backbone": 1e-3, "head": 1e-3}
    converted = known.convert(path, tmp_path / "converted.safetensors")
    for model in (
        known.load(path),
        known.build("mobilenet_v4_conv_small", pretrained=path),
        known.load(converted),
    ):
        assert epsilons(model) == {1e-3}


@pytest.mark.parametrize("name", TIMM)
def test_timm_builds_what_is_saved_for_it(registry: Registry, tmp_path: Path, name: str) -> None:
    ours = oracles.with_statistics(registry.build(name, num_classes=9))
    with torch.no_grad():
        ours.head.norm.running_var.uniform_(0.01, 0.5)
    registry.save(ours, tmp_path / "folder", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True).double().eval()
    images = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        expected = ours.double().eval()(images)
        assert (theirs(images) - expected).abs().max() < 1e-5 * expected.abs().max()
    back = registry.load(registry.convert(tmp_path / "folder", tmp_path / "back.safetensors"))
    assert epsilons(back) == {1e-5}
    with torch.no_grad():
        assert (back.double().eval()(images) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("name", NAMES)
def test_timm_reads_bare_backbones_as_features(
    registry: Registry, tmp_path: Path, name: str, output_stride: int
) -> None:
    ours = oracles.with_statistics(registry.build(name, features_only=True, output_stride=output_stride))
    registry.save(ours, tmp_path / "folder", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for mine, its in zip(ours.double()(images).values(), theirs.double()(images), strict=True):
            assert (mine - its).abs().max() < 1e-5 * its.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_comes_back_from_its_file_bit_for_bit(registry: Registry, tmp_path: Path, name: str) -> None:
    model = oracles.randomised(registry.build(name, num_classes=5)).float()
    path = registry.save(model, tmp_path / "file.safetensors")
    loaded = registry.load(path)
    assert loaded.head.norm.eps == model.head.norm.eps
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert registry.save(loaded, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", [True, "segmentation"])
@pytest.mark.parametrize("name", NAMES)
def test_of_a_whole_networks_channels_those_that_do_nothing_go(
    registry: Registry, tmp_path: Path, name: str, kind: Any
) -> None:
    """With half the channels behind C4 silent, the reduced network computes exactly what the whole one does."""
    whole = oracles.randomised(registry.build(name, num_classes=9)).float()
    sizes = registry.build(name, reduced_tail=kind, num_classes=9).state_dict()
    with torch.no_grad():
        for key, tensor in whole.state_dict(keep_vars=True).items():
            if tensor.shape != sizes[key].shape and not key.endswith("running_var"):
                tensor[len(sizes[key]) :] = 0
    path = registry.save(whole, tmp_path / "whole.safetensors")
    reduced = registry.build(name, reduced_tail=kind, num_classes=9, pretrained=path)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(reduced.double().eval()(images), whole.double().eval()(images), **CLOSE)


def test_on_a_shortcut_the_blocks_before_a_depthwise_layer_keep_their_say(registry: Registry, tmp_path: Path) -> None:
    """The channel that only the entering projection writes stays, though the depthwise layers behind it ignore it."""
    whole = oracles.randomised(registry.build("mobilenet_v4_conv_small", features_only=True)).float()
    with torch.no_grad():
        whole.stages.C5[0].project.norm.weight[100] = 1e6
        whole.stages.C5[1].start_depthwise.norm.weight[100] = 0
    path = registry.save(whole, tmp_path / "whole.safetensors")
    reduced = registry.build("mobilenet_v4_conv_small", features_only=True, reduced_tail=True, pretrained=path)
    assert 1e6 in reduced.stages.C5[0].project.norm.weight


def test_the_strongest_hidden_units_by_their_norm_stay(registry: Registry, tmp_path: Path) -> None:
    whole = oracles.randomised(registry.build("mobilenet_v4_conv_small")).float()
    order = torch.randperm(1280)
    with torch.no_grad():
        whole.head.logits.weight.fill_(1)
        whole.head.norm.weight.copy_(order + 1.0)
    path = registry.save(whole, tmp_path / "whole.safetensors")
    reduced = registry.build("mobilenet_v4_conv_small", reduced_tail=True, pretrained=path)
    assert torch.equal(reduced.head.norm.weight, whole.head.norm.weight[order >= 640])


def test_a_hidden_norm_makes_another_network(registry: Registry) -> None:
    spec = registry.spec("mobilenet_v4_conv_small", features_only=True)
    assert isinstance(spec, BackboneSpec)
    plain = replace(spec, classifier=replace(spec.classifier, hidden_norm=False))
    assert network_digest(spec) == "8d066749f740b2c3"
    assert network_digest(plain) != network_digest(spec)


# --- Modules ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")
@pytest.mark.parametrize("options", [{}, {"features_only": True, "taps": ("C4.expansion", "C3")}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_it_scripts_and_exports(registry: Registry, name: str, options: dict[str, Any]) -> None:
    model, images = registry.build(name, **options).eval(), torch.randn(2, 3, 65, 97)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    dynamic = {0: torch.export.Dim("batch")}
    exported = torch.export.export(model, (images,), dynamic_shapes=(dynamic,)).module()
    with torch.no_grad():
        expected = model(images)
        for other in (torch.jit.load(buffer)(images), exported(images)):
            torch.testing.assert_close(other, expected)


def test_a_fresh_hidden_norm_is_the_identity_with_the_familys_constants(registry: Registry) -> None:
    with torch.device("meta"):
        model = registry.build("mobilenet_v4_conv_medium")
    model = model.to_empty(device="cpu")
    model.head.initialise()
    norm = model.head.norm
    assert (norm.eps, norm.momentum) == (1e-3, 0.003)
    assert [set(tensor.tolist()) for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)] == [
        {1.0},
        {0.0},
        {0.0},
        {1.0},
    ]


def test_every_parameter_trains(registry: Registry) -> None:
    model = registry.build("mobilenet_v4_conv_small", num_classes=4)
    nn.functional.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.tensor([1, 2])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.head.norm.num_batches_tracked == 1


@pytest.mark.parametrize("head", ["fpn", "lraspp", "deeplab_v3"])
@pytest.mark.parametrize("name", NAMES)
def test_heads_take_it(registry: Registry, name: str, head: str) -> None:
    model = registry.build(name, head=head)
    assert sum(parameter.numel() for parameter in model.parameters()) == registry.spec(name, head=head).parameters


# --- The plugin ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TIMM)
def test_weights_state_what_timm_states(registry: Registry, name: str) -> None:
    published = {entry.tag: entry for entry in registry.weights_of(name)}
    theirs = {
        tag.partition(".")[2]: timm.get_pretrained_cfg(tag)
        for tag in timm.list_pretrained(f"{TIMM[name]}.*")
        if timm.get_pretrained_cfg(tag).num_classes == 1000
    }
    assert published.keys() == theirs.keys()
    for tag, config in theirs.items():
        entry, crop = published[tag], config.input_size[1]
        assert entry.url == f"hf://{config.hf_hub_id}/model.safetensors"
        assert entry.license.lower() == config.license
        assert entry.accuracy is None
        prepared = entry.preprocessing
        assert (prepared.resize, prepared.crop) == (floor(crop / config.crop_pct), crop)
        assert (prepared.mean, prepared.std, prepared.interpolation) == (config.mean, config.std, config.interpolation)


def test_the_plugin_imports_no_torch() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(EXAMPLE)!r}); import featuretap_mobilenet_v4.plugin as plugin\n"
        "from featuretap.registry import Registry\n"
        "registry = Registry(plugins=[plugin], discover=False)\n"
        "print(registry.spec('mobilenet_v4_conv_small').parameters, {'torch', 'timm', 'numpy'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "3774024 set()\n"

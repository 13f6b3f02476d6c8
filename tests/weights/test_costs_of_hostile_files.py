"""Small files that declare huge contents are refused in one line, at a cost proportional to the file size."""

import io
import json
import pickle
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.memory import limited_memory, peak_memory
from support.saved_models import error_of
from support.weights_files import A, framed
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.registry.specs import BackboneSpec, Tap
from featuretap.weights.metadata import Record, metadata_of
from featuretap.weights.reading import read_checkpoint

SECONDS = 5
MEGABYTES = 200
TIMES = 3
"""What reading a file may cost: processor time, and memory beyond so many times its size."""

MIB = 2**20
EMPTY = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
DETECTOR = {"name": "mobilenet_v3_large", "head": "retinanet", "num_classes": "91", "taps": ["C3", "C4", "C5"]}
SEGMENTER = {"name": "mobilenet_v3_large", "head": "deeplab_v3", "num_classes": "21", "taps": ["C5"]}
CLASSIFIER = {"head": "classification"}


def described(tensors: Mapping[str, Any] | None = None, data: bytes = bytes(8), **fields: object) -> bytes:
    """Return a weights file whose metadata has some fields replaced."""
    usual: dict[str, object] = {
        "schema": "1",
        "name": "mobilenet_v2",
        "options": {},
        "taps": ["C5"],
        "layout": "featuretap",
        "norm_eps": {"backbone": 1e-5},
        "preprocessing": {},
        "network": "",
        "by_name": True,
        "classes": "",
    }
    values = {**usual, **fields}
    metadata = {
        f"featuretap.{key}": value if isinstance(value, str) else json.dumps(value) for key, value in values.items()
    }
    return framed({"__metadata__": metadata, **(tensors or {"a": A})}, data)


def with_many_tensors(count: int) -> bytes:
    return framed(("{" + ",".join(f'"{number:x}":{EMPTY}' for number in range(count)) + "}").encode(), b"")


def with_tensor(name: str = "a", **changes: object) -> bytes:
    return framed({name: {**A, **changes}}, bytes(8))


def archive(files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as target:
        for name, content in files.items():
            target.writestr(f"a/{name}", content)
    return buffer.getvalue()


def torch_file(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def index(shards: Mapping[str, str], more: str = "") -> bytes:
    return json.dumps({"weight_map": dict(shards)}).encode().replace(b"}}", f"{more}}}}}".encode())


def names(count: int) -> dict[str, str]:
    return {f"a{number}": "part.safetensors" for number in range(count)}


OLD = b"".join(pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
"""Beginning of a file in the format of old versions of PyTorch."""


def nested_key(levels: int) -> bytes:
    """Return the pickle of a dictionary whose key is a deeply nested tuple: each level holds the previous one twice."""
    doubled = (b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(levels))
    return b"\x80\x02)q\x00" + b"".join(doubled) + b"}h%cK\x01s." % levels


RATIOS = [float(number + 1) for number in range(900)]

# Maps each case to its file name, a function that writes the content, and part of the expected error message.
FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    # Tensors
    "a name of prefixes": ("a.safetensors", lambda: with_tensor("module." * 150_000), "has 1,050,000 characters"),
    "a name of dots": ("a.safetensors", lambda: with_tensor("." * 1_000_000), "has 1,000,000 characters"),
    "a described name of dots": (
        "a.safetensors",
        lambda: described({"a." * 500_000: A}),
        "has 1,000,000 characters, but at most 1,000 are read",
    ),
    "names of dots": (
        "a.safetensors",
        lambda: described(
            {"." * 990 + str(number): {**A, "data_offsets": [8 * number, 8 * number + 8]} for number in range(1000)},
            bytes(8_000),
        ),
        "weights do not fit 'mobilenet_v2'",
    ),
    "a name of prefixes in a pickle": (
        "a.pth",
        lambda: torch_file({"module." * 150_000: torch.ones(1)}),
        "1,050,000 characters",
    ),
    "three hundred thousand tensors": (
        "a.safetensors",
        lambda: with_many_tensors(300_000),
        "more than 100,000 tensors",
    ),
    "tensors just over the limit": (
        "a.safetensors",
        lambda: with_many_tensors(100_001),
        "has 100,001 tensors, but at most 100,000",
    ),
    "many dimensions": (
        "a.safetensors",
        lambda: with_tensor(shape=[1] * 400_000),
        "has 400,000 dimensions, but at most 64",
    ),
    "many lists": (
        "a.safetensors",
        lambda: framed(b'{"a":[' + b"[]," * 3_000_000 + b"1]}"),
        "it has more than 1,000,000 lists",
    ),
    "an empty tensor of enormous sizes": (
        "a.safetensors",
        lambda: framed({"a": {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}, b""),
        "is too large",
    ),
    "a long type": ("a.safetensors", lambda: with_tensor(dtype="F" * 9_000_000), "has the unknown dtype 'FFF"),
    # Metadata
    "a long name": (
        "a.safetensors",
        lambda: described(name="." * 1_000_000),
        "featuretap.name of 1,000,000 characters, but at most 1,000",
    ),
    "fifty megabytes of metadata": (
        "a.safetensors",
        lambda: described(preprocessing="x" * 50_000_000),
        "featuretap.preprocessing of 50,000,000 characters",
    ),
    "nested values": (
        "a.safetensors",
        lambda: described(options="[" * 50_000 + "]" * 50_000),
        "has featuretap.options='[[[",
    ),
    "a nested header": (
        "a.safetensors",
        lambda: framed(b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"),
        "it is not JSON",
    ),
    "a number of millions of digits": (
        "a.safetensors",
        lambda: described(**CLASSIFIER, num_classes="1" * 9_000_000),
        "num_classes of 9,000,000 characters",
    ),
    "a number of thousands of digits": (
        "a.safetensors",
        lambda: described(options={"width": 10**4000}),
        "cannot take width=",
    ),
    "a million classes": (
        "a.safetensors",
        lambda: described(**CLASSIFIER, num_classes="1000000", classes=[f"c{number}" for number in range(1_000_000)]),
        "featuretap.classes of 10,888,890 characters",
    ),
    "a million taps": (
        "a.safetensors",
        lambda: described(taps=["C5"] * 1_000_000),
        "featuretap.taps of 6,000,000 characters",
    ),
    "many taps": ("a.safetensors", lambda: described(taps=["C5"] * 10_000), "which should be a list of tap addresses"),
    "atrous rates": (
        "a.safetensors",
        lambda: described(**SEGMENTER, options={"atrous_rates": [1] * 30_000}),
        "cannot take atrous_rates=",
    ),
    "atrous rates up to the limit": (
        "a.safetensors",
        lambda: described(**SEGMENTER, options={"atrous_rates": [1] * 1_000}),
        "describes a model with",
    ),
    "an enormous atrous rate": (
        "a.safetensors",
        lambda: described(**SEGMENTER, options={"atrous_rates": [10**30]}),
        "cannot take atrous_rates=",
    ),
    "anchors": (
        "a.safetensors",
        lambda: described(**DETECTOR, options={"anchor_sizes": [RATIOS] * 5, "aspect_ratios": [RATIOS] * 5}),
        "define 810,000 anchors per location, but at most 1,000 are allowed",
    ),
    "a wide network": (
        "a.safetensors",
        lambda: described(options={"width": 4.0}),
        "describes a model with 34,391,552 parameters, but contains 2 values",
    ),
    "two thousand million classes": (
        "a.safetensors",
        lambda: described(**CLASSIFIER, num_classes=str(2**31 - 1)),
        "describes a model with 2,750,928,775,679 parameters",
    ),
    "a wide pyramid": (
        "a.safetensors",
        lambda: described(**DETECTOR, options={"out_channels": 65_536}),
        "describes a model with",
    ),
    "a giant of timm's": (
        "a.safetensors",
        lambda: described(name="timm/vit_large_patch14_clip_224", taps=["blocks.23"]),
        "describes a model with 303,",
    ),
    "a giant of torchvision's": (
        "a.safetensors",
        lambda: described(name="torchvision/regnet_y_128gf", taps=["C5"]),
        "describes a model with 637,419,894 parameters, but contains 2 values",
    ),
    "a network of any depth": (
        "a.safetensors",
        lambda: described(name="timm/vit_tiny_patch16_224", taps=["blocks.11"], options={"depth": 100_000}),
        "networks of more than 30,000 modules are not built from the description in a file",
    ),
    "a number of layers that is allocated": (
        "a.safetensors",
        lambda: described(name="timm/vit_tiny_patch16_224", taps=["blocks.11"], options={"depth": 10**9}),
        "depth is 1000000000, but at most 100,000 is accepted from a file",
    ),
    # Pickles and archives
    "an archive that inflates": (
        "a.pth",
        lambda: archive(
            {"data.pkl": bytes(2_000_000), **{f"data/{n}": bytes(30_000_000) for n in range(4)}}, zipfile.ZIP_DEFLATED
        ),
        "that unpacks to 122,000,000",
    ),
    "a pickle that inflates": (
        "a.pth",
        lambda: archive({"data.pkl": bytes(200_000_000)}, zipfile.ZIP_DEFLATED),
        "has 200,000,000 bytes of names and values besides its tensors, but at most 2,500,000 are read",
    ),
    "a key that takes exponential time": (
        "a.pth",
        lambda: archive({"data.pkl": nested_key(60), "version": b"3\n"}),
        "nests repeated values too often; get it again from its source",
    ),
    "a key that takes exponential time, in the old format": (
        "a.pth",
        lambda: OLD + nested_key(60),
        "nests repeated values too often; get it again from its source",
    ),
    "many lists in the old format": (
        "a.pth",
        lambda: OLD + b"\x80\x02](" + b"]" * 9_000_000 + b"e.",
        "has over 2,500,000 bytes of names and values besides its tensors; save the state dict only",
    ),
    "a tensor with strides of 0": (
        "a.pth",
        lambda: torch_file({"a": torch.zeros(1).expand(40_000, 44_000)}),
        "but describes tensors of 7,040,000,000",
    ),
    # Indices
    "a hundred thousand files": (
        "a.safetensors.index.json",
        lambda: index({f"a{number}": f"{number}.safetensors" for number in range(100_000)}),
        "it lists 100,000 files, but at most 1,000 are read",
    ),
    "a repeated name among many": (
        "a.safetensors.index.json",
        lambda: index(names(100_000), ',"a99999":"b.safetensors"'),
        "'a99999' is repeated",
    ),
}


@pytest.fixture(scope="module")
def warm(registry: Registry) -> Registry:
    """A registry that has already imported the modules needed to describe models."""
    registry.spec("timm/resnet10t")
    for head in ("deeplab_v3", "retinanet"):
        registry.spec("mobilenet_v3_large", head=head).parameters  # noqa: B018
    return registry


@pytest.mark.parametrize("case", FILES)
def test_a_small_file_that_states_enormous_things_is_refused_at_little_cost(
    warm: Registry, tmp_path: Path, case: str
) -> None:
    name, content, problem = FILES[case]
    path = tmp_path / name
    path.write_bytes(content())
    size, errors, began = path.stat().st_size, [], time.process_time()

    def load() -> None:
        with limited_memory(TIMES * size + 1024 * MIB), pytest.raises(WeightsError) as error:
            warm.load(path)
        errors.append(str(error.value))

    assert peak_memory(load) < TIMES * size + MEGABYTES * MIB
    assert time.process_time() - began < SECONDS
    (error,) = errors
    assert problem in error
    assert len(error) <= 1000
    assert "\n" not in error


def test_a_config_of_more_than_ten_megabytes_is_refused(warm: Registry, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(with_tensor())
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "x" * 10_000_000}))
    with pytest.raises(
        WeightsError, match=r"config.json' has more than 10,000,000 bytes; get it again from its source"
    ):
        warm.load(tmp_path)


def test_a_field_is_not_written_longer_than_it_is_read(warm: Registry) -> None:
    model = warm.build("mobilenet_v1_025", num_classes=1)
    record = Record(replace(model.description, classes=("a" * 5_000_000,)), "featuretap")
    with pytest.raises(WeightsError) as error:
        metadata_of(record)
    assert str(error.value) == (
        "cannot save a model with classes of 5,000,004 characters; shorten it to at most 5,000,000"
    )


def test_an_empty_array_of_enormous_sizes_is_refused_in_a_paddle_file(tmp_path: Path) -> None:
    path, size = tmp_path / "a.pdparams", b"J\xff\xff\xff\x7f"
    content = pickle.dumps({"a": np.zeros((2, 0), "f4")}, protocol=4)
    header = len(content) - int.from_bytes(content[3:11], "little")
    body = content[header:].replace(b"K\x02K\x00\x86", b"(" + size * 3 + b"K\x00t")
    path.write_bytes(content[: header - 8] + len(body).to_bytes(8, "little") + body)
    assert "with a wrong number of values" in error_of(lambda: read_checkpoint(path))


def test_a_file_of_torch_that_asks_for_any_number_of_bytes_is_refused(warm: Registry, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    # A pickle that calls bytearray with a size of 8 GB.
    call = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R."
    for content in (call, archive({"data.pkl": call, "version": b"3"}, zipfile.ZIP_DEFLATED)):
        path.write_bytes(content + bytes(1000))
        with limited_memory(1024 * MIB):
            error = error_of(lambda: warm.load(path))
        assert error.startswith(f"'{path}' contains builtins.bytearray, which can take any amount of memory to read;")


@pytest.mark.parametrize(
    ("name", "taps", "lacking"),
    [
        ("timm/resnet50", ["C5"], "network.conv1.weight"),
        ("torchvision/resnet50", ["C5"], "network.conv1.weight"),
        ("timm/resnet10t", ["C5"], "network.conv1.0.weight"),
    ],
    ids=["of timm", "of torchvision", "small"],
)
def test_a_network_that_a_file_does_not_fit_is_never_built(
    warm: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, taps: list[str], lacking: str
) -> None:
    path, devices = tmp_path / "a.safetensors", []
    path.write_bytes(described({"a": A}, name=name, taps=taps))
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda conv: devices.append(conv.weight.device.type))
    with pytest.raises(WeightsError) as error:
        warm.load(path)
    assert set(devices) == {"meta"}
    assert f"does not have {lacking}" in str(error.value)


def only_with_memory(spec: BackboneSpec, *, taps: tuple[str, ...]) -> nn.Module:
    if torch.get_default_device().type == "meta":
        raise RuntimeError("values are needed")
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1))


def test_weights_are_fitted_to_the_network_itself_where_it_needs_memory(warm: Registry, tmp_path: Path) -> None:
    spec = BackboneSpec("mine", taps={"C1": Tap(8, 2)}, factory=f"{__name__}:only_with_memory")
    state = {"0.weight": torch.rand(8, 3, 3, 3), "0.bias": torch.rand(8)}
    torch.save(state, tmp_path / "a.pth")
    built = warm.build(spec, features_only=True, pretrained=tmp_path / "a.pth")
    assert torch.equal(built.state_dict()["0.weight"], state["0.weight"])

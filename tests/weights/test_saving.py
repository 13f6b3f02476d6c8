"""Files that are written: whole or not at all, the same for equal models, and all that is needed to load them."""

import contextlib
import io
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import torch
from support import oracles
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.ops import FrozenBatchNorm2d

from featuretap.backbones.mobilenet_v2 import V2
from featuretap.registry import Registry
from featuretap.registry.errors import FeaturetapError, OptionError, WeightsError
from featuretap.registry.specs import BackboneSpec, Tap
from featuretap.registry.variants import widened

ROOT = Path(__file__).parent.parent
NOBODY = 65534

Write = Callable[[Path], Path]


def bare(registry: Registry, name: str | BackboneSpec = "mobilenet_v2_050", **options: object) -> nn.Module:
    return oracles.randomised(registry.build(name, features_only=True, taps=("C2",), **options)).float()


def headed(registry: Registry) -> nn.Module:
    return oracles.randomised(registry.build("mobilenet_v1_025", num_classes=7)).float()


def whole(registry: Registry) -> nn.Module:
    return oracles.randomised(registry.build("mobilenet_v1_025", features_only=True)).float()


def bits(tensors: Mapping[str, Tensor]) -> dict[str, tuple[object, ...]]:
    """Everything that is in tensors, so that equality is that of every bit."""
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
        for name, tensor in tensors.items()
    }


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    ours, theirs = bits(model.state_dict()), bits(other.state_dict())
    assert list(ours) == list(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def everything_in(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def error_of(function: Callable[[], object], kind: type[FeaturetapError] = WeightsError) -> str:
    with pytest.raises(kind) as error:
        function()
    return str(error.value)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere; for a while, be somebody who may not."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process grows beyond a size, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that anybody may read: pytest's own are closed to others."""
    with umask(0o022), tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "target").mkdir()
        yield folder
        (folder / "target").chmod(0o755)


@pytest.fixture(params=["save", "convert"])
def write(request: pytest.FixtureRequest, registry: Registry, public: Path) -> Write:
    """Both ways to write one and the same file."""
    model = bare(registry)
    source = registry.save(model, public / "source.safetensors")
    if request.param == "save":
        return lambda path: registry.save(model, path)
    return lambda path: registry.convert(source, path)


# Whole or not at all


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("old.safetensors", "old.safetensors"),
        ("new.safetensors", "new.safetensors"),
        ("old", "old/model.safetensors"),
        ("new", "new"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_and_stays_as_it_is(
    registry: Registry, public: Path, write: Write, name: str, refused: str
) -> None:
    folder = public / "target"
    registry.save(bare(registry), folder / "old.safetensors")
    registry.save(bare(registry), folder / "old")
    before = everything_in(folder)
    (folder / "old").chmod(0o555)
    folder.chmod(0o555)
    with as_nobody():
        message = error_of(lambda: write(folder / name))
    (folder / "old").chmod(0o755)
    assert message == f"cannot write '{folder}/{refused}': Permission denied"
    assert everything_in(folder) == before


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("old.safetensors", "old.safetensors"),
        ("new.safetensors", "new.safetensors"),
        ("old", "old/model.safetensors"),
        ("empty", "empty/model.safetensors"),
    ],
)
def test_a_full_disk_leaves_the_old_files_and_nothing_else(
    registry: Registry, tmp_path: Path, write: Write, name: str, refused: str
) -> None:
    other = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",))
    registry.save(other, tmp_path / "old.safetensors")
    registry.save(other, tmp_path / "old")
    (tmp_path / "empty").mkdir()
    before = everything_in(tmp_path)
    with full_disk(20_000):
        message = error_of(lambda: write(tmp_path / name))
    assert message == f"cannot write '{tmp_path}/{refused}': File too large"
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent/new.safetensors", "No such file or directory"),
        ("folder.safetensors", "it is there, and is no file"),
        ("file.txt/new.safetensors", "Not a directory"),
        ("file.txt/new", "Not a directory"),
        ("file", "File exists"),
    ],
)
def test_places_where_no_file_can_be_are_refused(tmp_path: Path, write: Write, name: str, reason: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file.txt").write_text("a file")
    (tmp_path / "file").write_text("a file")
    before = everything_in(tmp_path)
    assert error_of(lambda: write(tmp_path / name)) == f"cannot write '{tmp_path / name}': {reason}"
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("name", ["file.pth", "file.pt", "file.bin", "file.onnx", "absent/file.safetensors.gz"])
def test_other_kinds_of_files_are_not_written(tmp_path: Path, write: Write, name: str) -> None:
    assert error_of(lambda: write(tmp_path / name), OptionError) == (
        f"cannot save to '{tmp_path / name}': {Path(name).suffix} files are not written; "
        "give a name that ends in .safetensors, or a folder"
    )
    assert everything_in(tmp_path) == {}


@pytest.mark.parametrize("stem", ["a" * 243, "é" * 121, "網" * 80], ids=["one byte", "two bytes", "three bytes"])
def test_any_name_that_the_file_system_takes_can_be_written(tmp_path: Path, write: Write, stem: str) -> None:
    path = tmp_path / f"{stem}.safetensors"
    assert write(path) == path
    assert list(tmp_path.iterdir()) == [path]


def test_saving_a_folder_gives_a_file_and_a_config_that_load(registry: Registry, tmp_path: Path) -> None:
    model = headed(registry)
    assert registry.save(model, tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "model.safetensors"
    assert sorted(everything_in(tmp_path / "new" / "folder")) == ["config.json", "model.safetensors"]
    assert_equal(registry.load(tmp_path / "new" / "folder"), model)


# Links, modes, and files in use


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path, write: Write) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "elsewhere" / "file.safetensors"
    file.write_text("old")
    (tmp_path / "middle.safetensors").symlink_to(Path("elsewhere") / "file.safetensors")
    link = tmp_path / "link.safetensors"
    link.symlink_to("middle.safetensors")
    assert write(link) == link
    assert os.readlink(link) == "middle.safetensors"
    assert os.readlink(tmp_path / "middle.safetensors") == "elsewhere/file.safetensors"
    assert not file.is_symlink()
    assert link.read_bytes() == file.read_bytes() == write(tmp_path / "plain.safetensors").read_bytes()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["file.safetensors"]


def test_a_dangling_link_gets_the_file_that_it_leads_to(tmp_path: Path, write: Write) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "file.safetensors")
    write(link)
    assert link.is_symlink()
    assert sorted(everything_in(tmp_path)) == ["file.safetensors", "link.safetensors"]
    assert not (tmp_path / "file.safetensors").is_symlink()


def test_a_link_into_a_missing_folder_is_refused(tmp_path: Path, write: Write) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "absent" / "file.safetensors")
    assert error_of(lambda: write(link)) == f"cannot write '{link}': No such file or directory"
    assert os.readlink(link) == str(tmp_path / "absent" / "file.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["link.safetensors"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_files_have_the_mode_of_the_umask(tmp_path: Path, write: Write, mask: int, mode: int) -> None:
    with umask(mask):
        write(tmp_path / "file.safetensors")
        write(tmp_path / "folder")
    for name in ("file.safetensors", "folder/model.safetensors", "folder/config.json"):
        assert (tmp_path / name).stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666])
def test_replaced_files_keep_their_mode(tmp_path: Path, write: Write, mode: int) -> None:
    path = tmp_path / "file.safetensors"
    path.write_text("old")
    path.chmod(mode)
    with umask(0o022):
        write(path)
    assert path.stat().st_mode & 0o7777 == mode
    assert path.stat().st_size > 3


def test_a_model_outlives_the_file_that_it_was_loaded_from(registry: Registry, tmp_path: Path) -> None:
    first, second = headed(registry), headed(registry)
    with torch.no_grad():
        second.head.logits.weight.add_(1)
    path = registry.save(first, tmp_path / "file.safetensors")
    model = registry.load(path).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        registry.save(second, path)
        assert_equal(model, first)
        assert torch.equal(model(images), before)
    assert_equal(registry.load(path), second)
    registry.save(model, path)
    assert_equal(registry.load(path), first)
    path.unlink()
    assert_equal(model, first)


@pytest.mark.parametrize("layout", ["featuretap", "torchvision", "timm"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_file_can_be_converted_where_it_lies(registry: Registry, tmp_path: Path, layout: str, kind: str) -> None:
    model = bare(registry)
    path = tmp_path / ("folder" if kind == "folder" else "file.safetensors")
    file = registry.save(model, path)
    if kind == "link":
        path = tmp_path / "link.safetensors"
        path.symlink_to(file)
    expected = registry.convert(file, tmp_path / "elsewhere.safetensors", layout).read_bytes()
    registry.convert(path, path, layout)
    assert file.read_bytes() == expected
    assert not file.is_symlink()
    assert_equal(registry.load(path), model)


# The same bytes for equal models

SAVE_IN_ALL_LAYOUTS = """
import sys
from pathlib import Path
import torch
from featuretap.registry import Registry

torch.manual_seed(0)
registry, folder = Registry(discover=False), Path(sys.argv[1])
model = registry.build("mobilenet_v2_050", num_classes=5, dropout=0.1)
for layout in ("featuretap", "torchvision", "timm"):
    registry.save(model, folder / f"{layout}.safetensors", layout)
    registry.save(model, folder / layout, layout)
"""


def test_equal_models_give_equal_bytes_in_every_process(tmp_path: Path) -> None:
    processes = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", SAVE_IN_ALL_LAYOUTS, tmp_path / seed]
        processes.append(subprocess.Popen(command, env=environment, cwd=tmp_path))
    assert [process.wait(300) for process in processes] == [0, 0]
    files = everything_in(tmp_path / "1")
    assert len([name for name, content in files.items() if content]) == 9
    assert files == everything_in(tmp_path / "2")
    for content in files.values():
        assert str(tmp_path).encode() not in (content or b"")
        assert tmp_path.name.encode() not in (content or b"")


@pytest.mark.parametrize("layout", ["featuretap", "torchvision", "timm"])
@pytest.mark.parametrize("name", ["mobilenet_v2_050", "mobilenet_v3_small"])
def test_saving_what_was_loaded_gives_the_same_bytes(
    registry: Registry, tmp_path: Path, name: str, layout: str
) -> None:
    model = oracles.randomised(registry.build(name, num_classes=3)).float()
    path = registry.save(model, tmp_path / "first.safetensors", layout)
    loaded = registry.load(path)
    again = registry.save(loaded, tmp_path / "second.safetensors", layout)
    assert again.read_bytes() == path.read_bytes()
    assert registry.convert(path, tmp_path / "third.safetensors", layout).read_bytes() == path.read_bytes()
    assert tmp_path.name.encode() not in again.read_bytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_do_not_say_where_their_weights_come_from(registry: Registry, tmp_path: Path, suffix: str) -> None:
    model, source = whole(registry), tmp_path / f"source{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), source)
    else:
        registry.save(model, source)
    expected = registry.save(model, tmp_path / "expected.safetensors").read_bytes()
    loaded = registry.build("mobilenet_v1_025", features_only=True, pretrained=source)
    assert loaded.description.weights == source
    assert registry.save(loaded, tmp_path / "again.safetensors").read_bytes() == expected
    assert registry.save(registry.load(source), tmp_path / "again.safetensors").read_bytes() == expected
    assert registry.convert(source, tmp_path / "again.safetensors").read_bytes() == expected
    assert tmp_path.name.encode() not in expected


# Wrappers

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compile": torch.compile,
    "AveragedModel": AveragedModel,
    "ModelEmaV3": ModelEmaV3,
}
NESTINGS = [
    *((name,) for name in WRAPPERS),
    # What torch.compile makes of a compiled module is a function.
    *(names for names in itertools.product(WRAPPERS, repeat=2) if names != ("compile", "compile")),
]


def wrapped(model: nn.Module, nesting: tuple[str, ...]) -> nn.Module:
    for name in reversed(nesting):
        model = WRAPPERS[name](model)
    return model


@pytest.mark.parametrize("nesting", NESTINGS, ids="-".join)
def test_wrappers_are_looked_through_when_saving(registry: Registry, tmp_path: Path, nesting: tuple[str, ...]) -> None:
    for model in (bare(registry), headed(registry)):
        expected = registry.save(model, tmp_path / "bare.safetensors").read_bytes()
        assert registry.save(wrapped(model, nesting), tmp_path / "file.safetensors").read_bytes() == expected


@pytest.mark.parametrize("build", [headed, whole])
@pytest.mark.parametrize("nesting", [(), *NESTINGS], ids="-".join)
def test_state_dicts_of_wrappers_load(
    registry: Registry, tmp_path: Path, build: Callable[[Registry], nn.Module], nesting: tuple[str, ...]
) -> None:
    model, path = build(registry), tmp_path / "file.pth"
    torch.save(wrapped(model, nesting).state_dict(), path)
    asked: dict[str, Any] = {"num_classes": 7} if build is headed else {"features_only": True}
    assert_equal(registry.build("mobilenet_v1_025", pretrained=path, **asked), model)
    assert_equal(registry.load(path), model)


# Numbers of every kind


def mixed(model: nn.Module) -> nn.Module:
    model.bfloat16()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    return model


def expanded(model: nn.Module) -> nn.Module:
    """Tensors of which several elements, or two names, share one place."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.full((1,), 0.5).expand(module.num_features)
            module.bias = module.weight
    return model


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "float16": nn.Module.half,
    "bfloat16": nn.Module.bfloat16,
    "float64": nn.Module.double,
    "mixed": mixed,
    "expanded": expanded,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("build", [bare, headed])
def test_every_type_of_numbers_comes_back_to_the_bit(
    registry: Registry, tmp_path: Path, build: Callable[[Registry], nn.Module], change: str
) -> None:
    model = CHANGES[change](build(registry))
    path = registry.save(model, tmp_path / "file.safetensors")
    loaded = registry.load(path)
    assert_equal(loaded, model)
    assert all(tensor.is_contiguous() for tensor in loaded.state_dict().values())
    converted = registry.convert(path, tmp_path / "converted.safetensors")
    assert converted.read_bytes() == path.read_bytes()
    if build is bare:
        assert_equal(registry.load(registry.convert(path, converted, "timm")), model)


def test_channels_last_changes_no_byte(registry: Registry, tmp_path: Path) -> None:
    model = headed(registry)
    expected = registry.save(model, tmp_path / "file.safetensors").read_bytes()
    model.to(memory_format=torch.channels_last)
    assert registry.save(model, tmp_path / "file.safetensors").read_bytes() == expected
    # Saving leaves the model as it is.
    assert model.backbone.stages.C1[0].conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_build_keeps_single_precision(registry: Registry, tmp_path: Path, dtype: torch.dtype) -> None:
    model = headed(registry).to(dtype)
    path = registry.save(model, tmp_path / "file.safetensors")
    assert_equal(registry.build("mobilenet_v1_025", num_classes=7, pretrained=path), model.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_plain_numpy_reads_the_same_values(registry: Registry, tmp_path: Path, dtype: torch.dtype) -> None:
    model = bare(registry).to(dtype)
    read = safetensors.numpy.load_file(registry.save(model, tmp_path / "file.safetensors"))
    assert bits({name: torch.from_numpy(array) for name, array in sorted(read.items())}) == bits(
        dict(sorted(model.state_dict().items()))
    )


@pytest.mark.parametrize("layout", ["featuretap", "torchvision", "timm"])
@pytest.mark.parametrize("change", [None, "mixed", "channels_last"])
def test_headers_are_sorted_and_tensors_aligned(
    registry: Registry, tmp_path: Path, layout: str, change: str | None
) -> None:
    model = bare(registry)
    if change:
        CHANGES[change](model)
    content = registry.save(model, tmp_path / "file.safetensors", layout).read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert (8 + length) % 64 == 0
    header = json.loads(content[8 : 8 + length])
    assert list(header) == sorted(header)
    metadata = header.pop("__metadata__")
    assert list(metadata) == sorted(metadata)
    end = 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        begin, stop = entry["data_offsets"]
        assert begin == end
        assert begin % {"F32": 4, "I64": 8, "BF16": 2}[entry["dtype"]] == 0
        end = stop
    assert 8 + length + end == len(content)


# What is not saved


def with_other_logits(model: nn.Module) -> str:
    model.head.logits = nn.Linear(256, 5)
    return "head.logits.weight is (5, 256), not (7, 256)"


def with_larger_convolution(model: nn.Module) -> str:
    model.backbone.stages.C1[0].conv = nn.Conv2d(3, 8, 5, 2, 2, bias=False)
    return "stages.C1.0.conv.weight is (8, 3, 5, 5), not (8, 3, 3, 3)"


def without_a_stage(model: nn.Module) -> str:
    del model.backbone.stages.C5
    return "stages.C5.0.depthwise.conv.weight is missing"


@pytest.mark.parametrize("change", [with_other_logits, with_larger_convolution, without_a_stage])
def test_changed_models_are_refused(registry: Registry, tmp_path: Path, change: Callable[[nn.Module], str]) -> None:
    model = headed(registry)
    problem = change(model)
    assert error_of(lambda: registry.save(model, tmp_path / "file.safetensors")) == (
        f"cannot save 'mobilenet_v1_025', which was changed after it was built: {problem}; build it as it is now "
        "(such as with num_classes=), and copy its state into that"
    )
    assert everything_in(tmp_path) == {}


def with_biased_convolution(model: nn.Module) -> str:
    model.backbone.stages.C1[0].conv = nn.Conv2d(3, 8, 3, 2, 1)
    return "stages.C1.0.conv"


def with_group_norm(model: nn.Module) -> str:
    model.backbone.stages.C1[0].norm = nn.GroupNorm(2, 8)
    return "stages.C1.0.norm"


def with_another_layer(model: nn.Module) -> str:
    model.backbone.extra = nn.Linear(2, 2)
    return "extra"


def with_another_head(model: nn.Module) -> str:
    model.head = nn.Linear(2, 2)
    return "head"


def without_head(model: nn.Module) -> str:
    model.head = nn.Identity()
    return "head"


def without_logits(model: nn.Module) -> str:
    model.head.logits = nn.Identity()
    return "head.logits"


def with_unbiased_logits(model: nn.Module) -> str:
    model.head.logits = nn.Linear(256, 7, bias=False)
    return "head.logits"


def with_wider_logits(model: nn.Module) -> str:
    model.head.logits = nn.Linear(512, 7)
    return "head.logits"


@pytest.mark.parametrize(
    "change",
    [
        with_biased_convolution,
        with_group_norm,
        with_another_layer,
        with_another_head,
        without_head,
        without_logits,
        with_unbiased_logits,
        with_wider_logits,
    ],
)
def test_models_that_could_not_be_loaded_as_they_are_now_are_refused(
    registry: Registry, tmp_path: Path, change: Callable[[nn.Module], str]
) -> None:
    model = headed(registry)
    name = change(model)
    message = error_of(lambda: registry.save(model, tmp_path / "file.safetensors"))
    assert message.startswith("cannot save 'mobilenet_v1_025', which was changed after it was built: ")
    assert name in message
    assert everything_in(tmp_path) == {}


@pytest.mark.parametrize("wrap", [lambda model: model, *WRAPPERS.values()], ids=["bare", *WRAPPERS])
def test_modules_of_others_are_refused(
    registry: Registry, tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    model = wrap(nn.Sequential(nn.Conv2d(3, 8, 3)))
    assert error_of(lambda: registry.save(model, tmp_path / "file.safetensors"), OptionError) == (
        f"{type(model).__name__} carries no description; registry.save writes models that registry.build or "
        "registry.load returned"
    )
    assert everything_in(tmp_path) == {}


def test_unknown_layouts_are_refused(tmp_path: Path, registry: Registry) -> None:
    assert error_of(lambda: registry.save(bare(registry), tmp_path / "folder", layout="keras")) == (
        "cannot save 'mobilenet_v2_050' for keras: the layout 'keras' is not one that 'mobilenet_v2_050' is known in; "
        "it has featuretap, torchvision, timm"
    )
    assert everything_in(tmp_path) == {}


PAINTED = BackboneSpec("painted", taps={"C1": Tap(4, 2)}, factory="test_saving:painted", options={"colour": None})


def painted(spec: BackboneSpec, *, taps: tuple[str, ...], colour: object, **options: object) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1))


@pytest.mark.parametrize("colour", [{1}, 1j, b"red", float("nan"), float("inf"), Path("red"), {"a": [{2}]}], ids=repr)
def test_options_that_no_file_can_hold_are_refused(registry: Registry, tmp_path: Path, colour: object) -> None:
    model = registry.build(PAINTED, features_only=True, colour=colour)
    for name in ("file.safetensors", "folder"):
        assert error_of(lambda name=name: registry.save(model, tmp_path / name)) == (
            f"cannot save a model with options {{'colour': {colour!r}}}: a file of weights holds numbers and text "
            "only; build the model with plain values"
        )
    assert everything_in(tmp_path) == {}


@pytest.mark.parametrize("colour", [None, True, 3, 0.1, "réd", [1, "a"], {"a": {"b": [None]}}], ids=repr)
def test_plain_options_come_back(registry: Registry, tmp_path: Path, colour: object) -> None:
    model = registry.build(PAINTED, features_only=True, colour=colour)
    loaded = registry.load(registry.save(model, tmp_path / "file.safetensors"), name=PAINTED)
    assert loaded.description.options == {"colour": colour}
    assert_equal(loaded, model)


# Specs without a name, and norms that are code


@pytest.mark.parametrize("asked", [{"features_only": True, "taps": ("C2",)}, {"num_classes": 3, "in_channels": 1}])
def test_models_of_a_spec_load_with_that_spec(registry: Registry, tmp_path: Path, asked: dict[str, Any]) -> None:
    spec = widened(V2, 0.6)
    model = oracles.randomised(registry.build(spec, **asked)).float()
    path = registry.save(model, tmp_path / "file.safetensors")
    assert error_of(lambda: registry.load(path)) == (
        f"'{path}' was saved from a BackboneSpec 'mobilenet_v2' that no name stands for; give it: "
        "registry.load(path, name=spec)"
    )
    loaded = registry.load(path, name=spec)
    assert_equal(loaded, model)
    assert registry.save(loaded, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert error_of(lambda: registry.convert(path, tmp_path / "again.safetensors", "torchvision")) == (
        f"'{path}' was saved from a BackboneSpec 'mobilenet_v2' that no name stands for; load it with "
        "registry.load(path, name=spec) and save the model"
    )


def test_a_spec_is_not_taken_for_the_network_whose_name_it_bears(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(bare(registry, widened(V2, 0.6)), tmp_path / "file.safetensors")
    assert error_of(lambda: registry.load(path, name="mobilenet_v2")) == (
        "weights do not fit 'mobilenet_v2': stages.C1.0.conv.weight is (24, 3, 3, 3) in the file, (32, 3, 3, 3) in "
        "the model; the file fits the BackboneSpec 'mobilenet_v2' that its model was built from"
    )


def test_a_spec_that_the_registry_knows_needs_not_be_given_again(registry: Registry, tmp_path: Path) -> None:
    model = bare(registry, V2)
    path = registry.save(model, tmp_path / "file.safetensors")
    assert_equal(registry.load(path), model)
    by_name = bare(registry, "mobilenet_v2")
    by_name.load_state_dict(model.state_dict())
    assert registry.save(by_name, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, nn.InstanceNorm2d, nn.Identity])
def test_norms_that_a_name_is_enough_for_are_restored(
    registry: Registry, tmp_path: Path, norm: type[nn.Module]
) -> None:
    model = bare(registry, norm=norm)
    path = registry.save(model, tmp_path / "file.safetensors")
    loaded = registry.load(path)
    assert {type(module) for name, module in loaded.named_modules() if name.endswith(".norm")} == {norm}
    assert loaded.description.options == {"norm": norm.__name__}
    assert_equal(loaded, model)
    assert registry.save(loaded, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(4, channels)


def test_norms_that_are_code_are_given_again(registry: Registry, tmp_path: Path) -> None:
    model = bare(registry, norm=lambda channels: nn.GroupNorm(4, channels))
    path = registry.save(model, tmp_path / "file.safetensors")
    assert error_of(lambda: registry.load(path)) == (
        f"'{path}' was saved with norm=a function that makes GroupNorm, which is code, and no file brings code; "
        "give it again: registry.load(path, norm=lambda channels: GroupNorm(...))"
    )
    loaded = registry.load(path, norm=group_norm)
    assert_equal(loaded, model)
    assert loaded.description.options == {"norm": "a function that makes GroupNorm"}
    assert registry.save(loaded, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.SyncBatchNorm, group_norm])
def test_files_with_any_norm_can_be_rewritten_in_their_own_layout(
    registry: Registry, tmp_path: Path, norm: Callable[[int], nn.Module]
) -> None:
    path = registry.save(bare(registry, norm=norm), tmp_path / "file.safetensors")
    assert registry.convert(path, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.SyncBatchNorm])
@pytest.mark.parametrize("write", ["save", "convert"])
def test_norms_with_statistics_are_saved_for_others(
    registry: Registry, tmp_path: Path, norm: type[nn.Module], write: str
) -> None:
    model = bare(registry, norm=norm)
    if write == "save":
        path = registry.save(model, tmp_path / "file.safetensors", "timm")
    else:
        path = registry.convert(
            registry.save(model, tmp_path / "source.safetensors"), tmp_path / "file.safetensors", "timm"
        )
    assert_equal(registry.load(path), model)
    assert "blocks.1.0.bn1.num_batches_tracked" in safetensors.numpy.load_file(path)


def test_norms_without_statistics_are_not_saved_for_others(registry: Registry, tmp_path: Path) -> None:
    model = bare(registry, norm=group_norm)
    assert error_of(lambda: registry.save(model, tmp_path / "file.safetensors", "timm")) == (
        "cannot save 'mobilenet_v2_050' with norm='a function that makes GroupNorm' for timm, whose batch norms "
        "cannot hold norm=a function that makes GroupNorm; save it in the layout 'featuretap'"
    )
    assert everything_in(tmp_path) == {}


@pytest.mark.parametrize("build", ["bare", "headed"])
def test_models_pickle_although_their_norm_was_a_lambda(registry: Registry, tmp_path: Path, build: str) -> None:
    asked: dict[str, Any] = {"features_only": True, "taps": ("C2",)} if build == "bare" else {"num_classes": 3}
    model = registry.build("mobilenet_v2_050", norm=lambda channels: nn.GroupNorm(4, channels), **asked)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    unpickled = torch.load(buffer, weights_only=False)
    assert_equal(unpickled, model)
    assert unpickled.description == model.description
    expected = registry.save(model, tmp_path / "first.safetensors").read_bytes()
    assert registry.save(unpickled, tmp_path / "second.safetensors").read_bytes() == expected

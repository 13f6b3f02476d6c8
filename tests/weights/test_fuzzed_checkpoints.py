"""Randomly damaged training checkpoints and sharded folders are read as PyTorch reads them, or refused.

By default, 300 fixed examples run. FEATURETAP_FUZZ_EXAMPLES=20000 runs that many random ones. Reading must use less
memory than three times the file size plus a constant.
"""

import io
import json
import os
import re
import tempfile
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from support.damage import damaged
from support.memory import peak_memory
from support.weights_files import bits

from featuretap.registry.errors import WeightsError
from featuretap.weights.reading import read_checkpoint

# Keep Hypothesis from writing into the repository.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "featuretap-hypothesis")

ASKED = os.environ.get("FEATURETAP_FUZZ_EXAMPLES")
EXAMPLES = int(ASKED or 300)

KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "net", "weights", "module")
CONSTANT = 16 * 2**20
"""Bytes of memory that do not depend on the file: the interpreter's, PyTorch's, and those of what they leave behind."""


class Inert:
    """Placeholder for the objects that our reader skips; PyTorch's own classes reject a damaged state."""

    def __new__(cls, *arguments: object) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


REFERENCE: list[Any] = [
    *((Inert, name) for name in ("argparse.Namespace", "pathlib.PosixPath", "numpy.dtype")),
    *((Inert, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]

names = st.sampled_from(["conv.weight", "bn.running_mean", "bn.num_batches_tracked", "a", "é"])
prefixes = st.sampled_from(["", "", "module.", "_orig_mod.module.", "model.backbone.", "encoder."])
values = st.sampled_from(
    [3, 0.5, "resnet18", None, True, [1, 2], {"lr": 0.1}, Namespace(lr=0.1, out=Path("/a")), np.float64(2)]
)


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    dtypes = st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
    prefix, state = draw(prefixes), {}
    for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        state[prefix + name] = torch.randn(shape, generator=torch.Generator().manual_seed(len(name))).to(draw(dtypes))
    return state


@st.composite
def training_checkpoints(draw: st.DrawFn) -> object:
    """Generate state dicts under common checkpoint keys, together with common training state."""
    kind = draw(st.sampled_from([dict, OrderedDict]))
    keys = draw(st.lists(st.sampled_from([*KEYS, *KEYS, "other"]), max_size=3, unique=True))
    content: dict[str, Any] = {key: kind(draw(state_dicts())) for key in keys}
    if not content or draw(st.integers(0, 9)) == 0:
        content |= draw(state_dicts())
    elif draw(st.booleans()):
        content |= {name: draw(values) for name in draw(st.sets(st.sampled_from(["args", "epoch", "best", "model"])))}
    return content


OPCODES = [bytes([code]) for code in b"(}])tNKMJXqrhjscRbu0125.\x80\x81\x85\x86\x87\x88\x89\x8a"]
PIECES = [
    *(b"cargparse\nNamespace\nq\x00", b"cos\nsystem\n", b"cbuiltins\neval\n", b"ccollections\nOrderedDict\n)R"),
    *(
        b"cbuiltins\nbytearray\n",
        b"J\xff\xff\xff\x7f\x85R",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"ctorch\nTensor\n",
    ),
    *(b"h\x00", b"h\x01", b"X\xff\xff\xff\xff", b")\x81", b"}b", b"X\x05\x00\x00\x00model", b"K\x00K\x00\x86"),
]


@st.composite
def torch_files(draw: st.DrawFn) -> bytes:
    """Generate damaged torch.save files; in archives, often a single member is damaged and its checksum is valid."""
    if draw(st.integers(0, 29)) == 0:
        return draw(st.binary(max_size=100))
    buffer = io.BytesIO()
    torch.save(draw(training_checkpoints()), buffer, _use_new_zipfile_serialization=draw(st.integers(0, 2)) > 0)
    content = buffer.getvalue()
    if not content.startswith(b"PK") or draw(st.integers(0, 3)) == 0:
        return draw(damaged(content, OPCODES, PIECES))
    packing = draw(st.sampled_from([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED]))
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(packed, "w", packing) as after:
        inside = before.namelist()
        chosen = draw(st.sampled_from([*[name for name in inside if name.endswith("data.pkl")] * 4, *inside]))
        for name in inside:
            kept = before.read(name)
            after.writestr(name, draw(damaged(kept, OPCODES, PIECES)) if name == chosen else kept)
    return packed.getvalue()


@st.composite
def sharded_folders(draw: st.DrawFn) -> dict[str, bytes]:
    """Generate a folder, as file name → content, of two or three shards and their index, one of them damaged."""
    count = draw(st.integers(2, 3))
    shards = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    weight_map, files = {}, {}
    for number, shard in enumerate(shards):
        state = {f"{number}.{name}": tensor for name, tensor in draw(state_dicts()).items()}
        weight_map |= dict.fromkeys(state, shard)
        files[shard] = safetensors.torch.save(state)
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}, ensure_ascii=draw(st.booleans()))
    target = draw(st.sampled_from(["text", "text", "tokens", "tokens", "shard", "missing", "exchanged"]))
    if target == "tokens":
        pattern = draw(st.sampled_from([r'"[^"]*"', r"[\[\]{},:]"]))
        place = draw(st.sampled_from(list(re.finditer(pattern, index))))
        pieces = [place[0], "{}", "[]", "3", "null", '""', '"../a.safetensors"', '"weight_map"', ",", ":", "{", "}"]
        exchanged = draw(
            st.sampled_from([*pieces, *(json.dumps(shard) for shard in shards), json.dumps(next(iter(weight_map)))])
        )
        index = index[: place.start()] + exchanged + index[place.end() :]
    elif target == "shard":
        shard = draw(st.sampled_from(shards))
        files[shard] = draw(damaged(files[shard], [b"0", b'"', b"{"], [b"0", b'"a"', b","]))
    elif target == "missing":
        del files[draw(st.sampled_from(shards))]
    elif target == "exchanged":
        files[shards[0]], files[shards[1]] = files[shards[1]], files[shards[0]]
    content = index.encode()
    if target == "text":
        content = draw(damaged(content, [b'"', b"{", b"}", b":"], [b"{", b'"a": "b",', b"\\u0000", b"[" * 99]))
    return files | {"model.safetensors.index.json": content}


def read_within_bounds(path: Path, size: int) -> Mapping[str, torch.Tensor] | None:
    """Return the tensors of a file, or None if the file is refused."""
    results: list[Mapping[str, torch.Tensor] | str] = []

    def read() -> None:
        try:
            results.append(read_checkpoint(path).tensors)
        except WeightsError as error:
            results.append(str(error))

    assert peak_memory(read) < 3 * size + CONSTANT
    (result,) = results
    if isinstance(result, str):
        event("refused: " + re.sub(r"'.*?'", "…", result)[:40])
        assert "\n" not in result
        return None
    return result


def assert_equal_tensors(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Assert that the tensors are the same and in the same order, with or without a name prefix."""
    event("accepted")
    rest = {name: tensor for name, tensor in expected.items() if name != "n_averaged"}
    assert len(found) == len(rest)
    for (name, tensor), (original, other) in zip(found.items(), rest.items(), strict=True):
        assert original.endswith(name)
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
        # Damaged strides can repeat a few bytes up to the size limit, which is three times the file size.
        assert bits(tensor) == bits(other.detach())


def select(content: Any) -> Any:
    """Return the state dict of a checkpoint by the documented key order."""
    while isinstance(content, Mapping):
        key = next((key for key in KEYS if isinstance(content.get(key), Mapping) and content[key]), None)
        if key is None:
            break
        content = content[key]
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


def examples(share: float) -> settings:
    return settings(max_examples=int(EXAMPLES * share), derandomize=ASKED is None, deadline=None, database=None)


# A PyTorch warning raised as an error would count as a refusal.
@pytest.mark.filterwarnings("ignore")
@examples(0.6)
@given(content=torch_files())
def test_damaged_checkpoints_are_read_as_pytorch_reads_them_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "damaged.ckpt"
    path.write_bytes(content)
    found = read_within_bounds(path, len(content))
    if found is None:
        return
    with torch.serialization.safe_globals(REFERENCE):
        expected = select(torch.load(path, map_location="cpu", weights_only=True))
    assert_equal_tensors(found, expected)


@examples(0.4)
@given(files=sharded_folders())
def test_damaged_folders_are_read_as_safetensors_reads_them_or_refused(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        found = read_within_bounds(folder, sum(map(len, files.values())))
        if found is None:
            return
        index = json.loads(files["model.safetensors.index.json"])
        shards = dict.fromkeys(index["weight_map"].values())
        expected = {key: value for shard in shards for key, value in safetensors.torch.load(files[shard]).items()}
        assert index["weight_map"].keys() == expected.keys()
        # torch.compile's marker is also removed from the middle of names.
        expected = {key.replace("_orig_mod.", ""): value for key, value in expected.items()}
        assert_equal_tensors(
            found, {key: expected[key] for key in found} if found.keys() <= expected.keys() else expected
        )


def test_a_large_checkpoint_is_read_within_three_times_its_size(tmp_path: Path) -> None:
    path = tmp_path / "large.pth"
    weights = {str(number): torch.randn(1_000_000) for number in range(8)}
    state = {"model": weights, "model_ema": weights, "optimizer": {"state": {0: {"momentum": torch.randn(8_000_000)}}}}
    for legacy in (False, True):
        torch.save({**state, "args": Namespace(lr=0.1)}, path, _use_new_zipfile_serialization=not legacy)
        found = read_within_bounds(path, path.stat().st_size)
        assert found is not None
        assert torch.equal(found["7"], weights["7"])

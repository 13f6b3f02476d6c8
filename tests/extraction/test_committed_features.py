"""A feature folder written by an earlier version is recognized as complete, or is continued if it is not.

`tests/support/write_committed_files.py` wrote the folder from the images in tests/training/data and the weights in
tests/weights/data.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from support import TESTS
from support.extraction import Run

from featuretap import registry

FEATURES = Path(__file__).parent / "data" / "features"
PICTURES = TESTS / "training" / "data" / "pictures" / "red"
WEIGHTS = TESTS / "weights" / "data" / "backbone-with-options.safetensors"
SHARDS = ("features-00000-of-00002.safetensors", "features-00001-of-00002.safetensors")
COMMAND = ("extract", PICTURES, "--weights", WEIGHTS, "--taps", "C2,C5", "--pool", "--shard-size", "2")
SIZE = ("--size", "32x48")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A copy of the committed folder that a test can continue."""
    return Path(shutil.copytree(FEATURES, tmp_path / "features"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_the_committed_folder_is_complete(run: Run, out: Path) -> None:
    ran = run(*COMMAND, *SIZE, "--out", out)
    assert ran.status == 0, ran.err
    assert "3 images (3 from an earlier run), 0 unreadable" in ran.out
    assert [(out / shard).read_bytes() for shard in SHARDS] == [(FEATURES / shard).read_bytes() for shard in SHARDS]
    before, after = (json.loads((folder / "manifest.json").read_text()) for folder in (FEATURES, out))
    # Only the path of the weights differs, because they were in another folder.
    assert {**after, "weights": before["weights"]} == before


def test_a_missing_shard_of_the_committed_folder_is_written_again(run: Run, out: Path) -> None:
    (out / SHARDS[1]).unlink()
    ran = run(*COMMAND, *SIZE, "--out", out)
    assert ran.status == 0, ran.err
    assert "3 images (2 from an earlier run), 0 unreadable" in ran.out
    assert (out / SHARDS[0]).read_bytes() == (FEATURES / SHARDS[0]).read_bytes()
    written, committed = load_file(out / SHARDS[1]), load_file(FEATURES / SHARDS[1])
    assert written.keys() == committed.keys()
    for name, values in committed.items():
        np.testing.assert_allclose(written[name], values, rtol=1e-4, atol=1e-5)


def test_the_committed_folder_does_not_continue_with_another_size(run: Run, out: Path) -> None:
    ran = run(*COMMAND, "--size", "64x64", "--out", out)
    assert ran.status != 0
    assert "[32, 48]" in ran.err
    assert contents(out) == contents(FEATURES)


def test_the_committed_features_are_those_of_the_committed_weights() -> None:
    model = registry.load(WEIGHTS, taps=("C2", "C5")).float().eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pictures = [
        Image.open(PICTURES / f"{number}.png").resize((48, 32), Image.Resampling.BILINEAR) for number in range(3)
    ]
    batch = torch.stack([(torch.tensor(np.array(each)).permute(2, 0, 1) / 255 - mean) / std for each in pictures])
    shards = [load_file(FEATURES / shard) for shard in SHARDS]
    with torch.no_grad():
        for tap, maps in model(batch).items():
            committed = np.concatenate([shard[tap] for shard in shards])
            np.testing.assert_allclose(committed, maps.mean((2, 3)).numpy(), rtol=1e-3, atol=1e-4)


def test_the_committed_manifest_has_the_keys_that_readers_use() -> None:
    manifest = json.loads((FEATURES / "manifest.json").read_text())
    assert {"schema", "model", "taps", "shards", "rows", "images", "format", "pooled"} <= manifest.keys()
    assert [shard["file"] for shard in manifest["shards"]] == list(SHARDS)

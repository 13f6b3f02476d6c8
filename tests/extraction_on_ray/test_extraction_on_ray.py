"""The same features, made by Ray's processes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image
from skimage import data
from support import oracles

from featuretap import registry
from featuretap.extraction.reading import open_features

COMMAND = [sys.executable, "-m", "featuretap.registry.command_line", "extract"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine cuts of a photograph, and a file that is no image."""
    images = tmp_path / "images"
    images.mkdir()
    whole = Image.fromarray(data.chelsea())
    for number in range(9):
        whole.crop((40 * number, 20 * number, 40 * number + 90, 20 * number + 70)).save(images / f"ü{number}.png")
    (images / "ü4b.png").write_text("no image")
    return images


@pytest.fixture
def arguments(tmp_path: Path, folder: Path) -> list[str]:
    model = registry.build("mobilenet_v3_small", width=0.25, features_only=True)
    weights = registry.save(model, tmp_path / "small.safetensors")
    how = ("--weights", weights, "--taps", "C3,C5", "--size", "32x48", "--shard-size", 3)
    return [str(argument) for argument in (folder, *how)]


def ran(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: Ray leaves warnings behind, which are errors in tests."""
    alone: Mapping[str, str] = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, env={**alone, **environment}, check=False
    )


def test_ray_makes_the_same_files_and_goes_on_where_a_run_was_broken(arguments: list[str], tmp_path: Path) -> None:
    alone, on_ray = tmp_path / "alone", tmp_path / "on-ray"
    first = ran(*arguments, "--out", alone)
    assert first.returncode == 0, first.stderr
    on_ray.mkdir()
    # A broken run left its first shard, and a manifest that knows no shards.
    manifest = json.loads((alone / "manifest.json").read_text())
    (on_ray / "manifest.json").write_text(json.dumps({key: manifest[key] for key in manifest if key != "shards"}))
    kept = on_ray / "features-00000-of-00004.safetensors"
    kept.write_bytes((alone / kept.name).read_bytes())
    before = kept.stat().st_mtime_ns
    second = ran(*arguments, "--out", on_ray, "--ray")
    assert second.returncode == 0, second.stderr
    assert second.stdout.startswith(f"{on_ray}: 10 images, 3 of them before, 1 bad, ")
    assert second.stderr.endswith(
        f"featuretap: 1 of 10 images cannot be read and are left out; see '{on_ray / 'errors.csv'}'\n"
    )
    assert kept.stat().st_mtime_ns == before
    one, other = open_features(alone), open_features(on_ray)
    assert one.manifest == other.manifest
    assert one.names == other.names == [f"ü{number}.png" for number in range(9)]
    for tap in one.taps:
        assert abs(one.tap(tap) - other.tap(tap)).max() < 1e-5 * abs(one.tap(tap)).max()
    assert (alone / "errors.csv").read_bytes() == (on_ray / "errors.csv").read_bytes()


def test_an_error_in_a_process_of_rays_is_one_line(folder: Path, tmp_path: Path) -> None:
    model = oracles.randomised(registry.build("mobilenet_v3_small", width=0.25, features_only=True))
    how = ("--weights", registry.save(model, tmp_path / "large.safetensors"), "--size", "32x48", "--dtype", "float16")
    failed = ran(folder, *how, "--out", tmp_path / "out", "--ray")
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert re.fullmatch(
        r"featuretap: C5 of 'ü0.png' has the value -?\d+, which float16 cannot hold; give --dtype float32 and another "
        r"--out",
        failed.stderr.splitlines()[-1],
    )


def test_a_cluster_that_is_not_there_is_an_error(arguments: list[str], tmp_path: Path) -> None:
    there = ran(*arguments, "--out", tmp_path / "out", "--ray", RAY_ADDRESS="nonsense")
    assert there.returncode == 2
    assert there.stdout == ""
    assert there.stderr.endswith(
        "featuretap: cannot reach the Ray cluster at 'nonsense' (Invalid address format: nonsense); start one with "
        "'ray start --head', or unset RAY_ADDRESS to have one started here\n"
    )

"""Extraction with Ray's processes gives the same features."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from skimage import data
from support import Completed, oracles

from featuretap import registry
from featuretap.command_line import main
from featuretap.workflows.extraction.reading import open_features

# Starting a Ray cluster takes many seconds. All commands therefore run in one process: the first that needs a cluster
# starts it, and the next one reuses it. A separate process is needed because Ray causes warnings, which are errors in
# the tests' own process.
PROGRAM = """
import json, os, sys
import ray
from featuretap.command_line import main

shut_down, statuses = ray.shutdown, {}
ray.shutdown = lambda: None
printed = [os.dup(1), os.dup(2)]
for name, (arguments, environment) in json.load(sys.stdin).items():
    for descriptor, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{sys.argv[1]}/{name}.{stream}", os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(environment)
    try:
        main(arguments)
    except SystemExit as ended:
        statuses[name] = ended.code or 0
    for variable in environment:
        del os.environ[variable]
    sys.stdout.flush(), sys.stderr.flush()
    for descriptor in (1, 2):
        os.dup2(printed[descriptor - 1], descriptor)
    if ray.is_initialized():
        ray.init = lambda **options: None
shut_down()
print(json.dumps(statuses))
"""
KEPT = "features-00000-of-00004.safetensors"
OLD = 1_000_000_000
"""The time of modification of the shard that an interrupted run has left."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images (one is unreadable), features extracted without Ray, and an interrupted run."""
    folder = tmp_path_factory.mktemp("extraction")
    (folder / "images").mkdir()
    whole = Image.fromarray(data.chelsea())
    for number in range(9):
        cut = whole.crop((40 * number, 20 * number, 40 * number + 90, 20 * number + 70))
        cut.save(folder / "images" / f"ü{number}.png")
    (folder / "images" / "ü4b.png").write_text("no image")
    model = registry.build("mobilenet_v3_small", width=0.25, features_only=True)
    registry.save(model, folder / "small.safetensors")
    registry.save(oracles.randomised(model), folder / "large.safetensors")
    with contextlib.suppress(SystemExit):
        main(arguments(folder, "alone"))
    # An interrupted run leaves its first shard and a manifest without shards.
    (folder / "on-ray").mkdir()
    manifest = json.loads((folder / "alone" / "manifest.json").read_text())
    manifest = {key: manifest[key] for key in manifest if key != "shards"}
    (folder / "on-ray" / "manifest.json").write_text(json.dumps(manifest))
    (folder / "on-ray" / KEPT).write_bytes((folder / "alone" / KEPT).read_bytes())
    os.utime(folder / "on-ray" / KEPT, (OLD, OLD))
    return folder


def arguments(folder: Path, out: str) -> list[str]:
    how = ("--weights", folder / "small.safetensors", "--taps", "C3,C5", "--size", "32x48", "--shard-size", 3)
    return [str(argument) for argument in ("extract", folder / "images", *how, "--out", folder / out)]


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Completed]:
    """The result of each command with --ray. The first one cannot reach its cluster."""
    large = ("--weights", folder / "large.safetensors", "--size", "32x48", "--dtype", "float16")
    failing = map(str, ("extract", folder / "images", *large, "--out", folder / "failed", "--ray"))
    commands = {
        "unreachable": ([*arguments(folder, "unreachable"), "--ray"], {"RAY_ADDRESS": "nonsense"}),
        "continued": ([*arguments(folder, "on-ray"), "--ray"], {}),
        "failed": ([*failing], {}),
    }
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        env={**alone, "FEATURETAP_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    printed = {name: [(folder / f"{name}.{stream}").read_text() for stream in ("out", "err")] for name in commands}
    return {name: Completed(status, *printed[name]) for name, status in json.loads(done.stdout).items()}


def test_ray_makes_the_same_files_and_goes_on_where_a_run_was_broken(folder: Path, ran: dict[str, Completed]) -> None:
    alone, on_ray, second = folder / "alone", folder / "on-ray", ran["continued"]
    assert second.status == 0, second.err
    assert second.out.startswith(f"{on_ray}: 10 images (3 from an earlier run), 1 unreadable, ")
    assert second.err.endswith(
        f"featuretap: skipped 1 of 10 images, which cannot be read; see '{on_ray / 'errors.csv'}'\n"
    )
    assert (on_ray / KEPT).stat().st_mtime == OLD
    one, other = open_features(alone), open_features(on_ray)
    assert one.manifest == other.manifest
    assert one.names == other.names == [f"ü{number}.png" for number in range(9)]
    for tap in one.taps:
        assert abs(one.tap(tap) - other.tap(tap)).max() < 1e-5 * abs(one.tap(tap)).max()
    assert (alone / "errors.csv").read_bytes() == (on_ray / "errors.csv").read_bytes()


def test_an_error_in_a_process_of_rays_is_one_line(ran: dict[str, Completed]) -> None:
    failed = ran["failed"]
    assert (failed.status, failed.out) == (2, "")
    assert re.fullmatch(
        r"featuretap: C5 of 'ü0.png' has the value -?\d+, which exceeds the range of float16; use --dtype float32 and "
        r"another --out",
        failed.err.splitlines()[-1],
    )


def test_a_cluster_that_is_not_there_is_an_error(ran: dict[str, Completed]) -> None:
    there = ran["unreachable"]
    assert (there.status, there.out) == (2, "")
    assert there.err.endswith(
        "featuretap: cannot reach the Ray cluster at 'nonsense' (Invalid address format: nonsense); start one with "
        "'ray start --head', or unset RAY_ADDRESS to use a local cluster\n"
    )

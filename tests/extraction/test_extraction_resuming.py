"""Interrupted extractions continue, and a folder of a different run is refused."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from support.extraction import SMALL, Run, bytes_in, photograph
from support.full_disk import full_disk

from featuretap import registry

COMMAND = [sys.executable, "-m", "featuretap.command_line", "extract"]


def test_a_killed_run_resumes_to_the_same_bytes(extract: Run, folder: Path, tmp_path: Path, weights: Path) -> None:
    for copy in range(4):
        shutil.copytree(folder, folder / f"copy{copy}", ignore=shutil.ignore_patterns("copy*"))
    (folder / "copy0" / "broken.jpg").touch()
    how = (folder, "--taps", "C3,C5", "--shard-size", "1")
    assert extract(*how, "--out", tmp_path / "unbroken").status == 0
    out = tmp_path / "out"
    arguments = [*map(str, how), "--out", str(out), "--weights", str(weights), *SMALL]
    broken = subprocess.Popen([*COMMAND, *arguments])
    while not (kept := list(out.glob("features-*"))):
        assert broken.poll() is None
        time.sleep(0.001)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    done = len(list(out.glob("features-*")))
    times = {path: path.stat().st_mtime_ns for path in kept}
    assert 0 < done < 56
    assert extract(*how, "--out", out).out.startswith(f"{out}: 56 images ({done} from an earlier run), 1 unreadable, ")
    assert bytes_in(out) == bytes_in(tmp_path / "unbroken")
    assert {path: path.stat().st_mtime_ns for path in kept} == times


def test_a_finished_run_has_nothing_left_to_do(extract: Run, folder: Path, tmp_path: Path) -> None:
    how = (folder, "--out", tmp_path / "out")
    extract(*how)
    before = bytes_in(tmp_path / "out")
    assert extract(*how).out.startswith(f"{tmp_path / 'out'}: 11 images (11 from an earlier run), 0 unreadable, ")
    assert bytes_in(tmp_path / "out") == before


def test_temporary_files_of_a_killed_run_are_removed(extract: Run, folder: Path, tmp_path: Path) -> None:
    left = tmp_path / "out" / ".featuretap-0123456789ab.tmp"
    left.parent.mkdir()
    left.write_text("half")
    assert extract(folder, "--out", tmp_path / "out").status == 0
    assert not left.exists()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (("--taps", "C3"), 'taps: ["C5"] there, ["C3"] requested'),
        (("--pool",), "pooling: false there, true requested"),
        (("--size", "64x64"), "size of the images: [32, 48] there, [64, 64] requested"),
        (("--dtype", "float16"), 'dtype: "float32" there, "float16" requested'),
        (("--shard-size", 5), "shard size: 1024 there, 5 requested"),
        (
            ("--model", "mobilenet_v3_large", "--weights", "none"),
            'model: "mobilenet_v3_small" there, "mobilenet_v3_large"',
        ),
    ],
)
def test_a_run_with_other_settings_does_not_continue_in_a_folder(
    extract: Run, folder: Path, tmp_path: Path, change: tuple[object, ...], difference: str
) -> None:
    out = tmp_path / "out"
    extract(folder, "--out", out)
    before = bytes_in(out)
    ran = extract(folder, "--out", out, *change)
    assert ran.status == 2
    assert ran.err.startswith(f"featuretap: '{out}' contains features of another run ({difference}")
    assert ran.err.endswith("requested); use another --out, or the original command\n")
    assert bytes_in(out) == before


def test_a_run_with_other_weights_or_images_does_not_continue(extract: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(folder, "--out", out)
    other = registry.build("mobilenet_v3_small", width=0.25, features_only=True)
    path = registry.save(other, tmp_path / "other.safetensors")

    def difference(*arguments: object) -> str:
        ran = extract(folder, "--out", out, *arguments)
        assert ran.status == 2
        found = re.search(r"another run \((\w[\w ]*): (\S+) there, (\S+) requested\)", ran.err)
        assert found
        assert found[2] != found[3]
        return found[1]

    assert difference("--weights", path) == "weights"
    photograph(5).resize((200, 200)).save(folder / "b.jpg")
    assert difference() == "images"
    (folder / "new.jpg").touch()
    assert difference() == "number of images"


def test_a_damaged_shard_is_not_taken_for_a_finished_one(extract: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    how = (folder, "--out", out, "--shard-size", 6)
    extract(*how)
    before = bytes_in(out)
    shard = out / "features-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    missing = out / "features-00000-of-00002.safetensors"
    missing.unlink()
    ran = extract(*how)
    assert not missing.exists()
    assert (ran.status, ran.err) == (
        2,
        f"featuretap: '{shard}' is not a complete features file; delete it and run the same command again\n",
    )
    shard.unlink()
    assert extract(*how).status == 0
    assert bytes_in(out) == before


def test_two_processes_do_not_write_into_one_folder(extract: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(folder, "--out", out)
    with FileLock(out / ".lock"):
        ran = extract(folder, "--out", out)
    assert (ran.status, ran.err) == (
        2,
        f"featuretap: another process is writing features to '{out}'; wait until it ends, or use another --out\n",
    )
    assert extract(folder, "--out", out).status == 0


def test_a_full_disk_is_an_error_and_finished_shards_are_kept(extract: Run, folder: Path, tmp_path: Path) -> None:
    how = (folder, "--shard-size", 8, "--taps", "C1")
    extract(*how, "--out", tmp_path / "unbroken")
    out = tmp_path / "out"
    extract(*how, "--out", out)
    (out / "features-00000-of-00002.safetensors").unlink()
    with full_disk(40_000):
        ran = extract(*how, "--out", out)
    assert (ran.status, ran.err) == (
        2,
        f"featuretap: cannot write '{out / 'features-00000-of-00002.safetensors'}': File too large\n",
    )
    assert not list(out.glob(".featuretap-*"))
    assert extract(*how, "--out", out).status == 0
    assert bytes_in(out) == bytes_in(tmp_path / "unbroken")

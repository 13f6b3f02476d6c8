"""Feature maps of many images in files: what is in them, and that a broken run can go on."""

import csv
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from skimage import data
from support import oracles
from torch import nn
from torchvision.transforms import v2

from featuretap import registry
from featuretap.extraction.folder import claimed
from featuretap.extraction.images import ImageFile
from featuretap.extraction.job import Job
from featuretap.extraction.reading import open_features
from featuretap.registry import extras
from featuretap.registry.errors import DataError, UnknownTapError
from featuretap.registry.images import read_image

Run = Callable[..., Any]
COMMAND = [sys.executable, "-m", "featuretap.registry.command_line", "extract"]
SMALL = ("--size", "32x48")


def photograph(seed: int) -> Image.Image:
    """A cut of a photograph, of an odd size."""
    chosen = random.Random(seed)
    whole = Image.fromarray(chosen.choice([data.chelsea, data.coffee, data.rocket])())
    width, height = chosen.randint(40, 120), chosen.randint(40, 120)
    left, top = chosen.randint(0, whole.width - width), chosen.randint(0, whole.height - height)
    return whole.crop((left, top, left + width, top + height))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven images, some of one name in different folders, some of names that are not ASCII."""
    images = tmp_path / "images"
    for seed, name in enumerate(
        [
            "b.jpg",
            "a.png",
            "a/b.jpg",
            "a/c.jpg",
            "c/b.jpg",
            "ü/猫 1.jpg",
            "ü/a,b\"c'.png",
            "z1.JPG",
            "z10.jpg",
            "z2.jpg",
        ]
    ):
        path = images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(seed).save(path)
    photograph(99).convert("L").save(images / "grey.png")
    (images / "notes.txt").write_text("no image")
    return images


@pytest.fixture
def model() -> nn.Module:
    return registry.build("mobilenet_v3_small", width=0.25, features_only=True).eval()


@pytest.fixture
def weights(tmp_path: Path, model: nn.Module) -> Path:
    return registry.save(model, tmp_path / "small.safetensors")


@pytest.fixture
def extract(run: Run, weights: Path) -> Run:
    """Run `featuretap extract` with the small model, on small images."""

    def extract(*arguments: object) -> Any:
        return run("extract", "--weights", weights, *(() if "--size" in arguments else SMALL), *arguments)

    return extract


def names_in(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".jpg", ".png")]


def plainly(model: nn.Module, folder: Path, prepare: Callable[[Any], torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same features in a plain loop over the images."""
    with torch.no_grad():
        maps = [model(prepare(read_image(folder / name))[None]) for name in names_in(folder)]
    return {tap: torch.cat([each[tap] for each in maps]) for tap in maps[0]}


def resized(image: Image.Image) -> torch.Tensor:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    steps = [v2.Resize((32, 48)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose(steps)(image)  # type: ignore[no-any-return]


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def close(values: Any, expected: torch.Tensor) -> bool:
    return bool(np.abs(np.asarray(values) - expected.numpy()).max() < 1e-5 * expected.abs().max())


# What is in the files


def test_features_are_those_of_a_plain_loop(extract: Run, folder: Path, tmp_path: Path, model: nn.Module) -> None:
    ran = extract(folder, "--taps", "C5,C2.expansion", "--out", tmp_path / "out", "--batch-size", 4)
    assert (ran.status, ran.err) == (0, "")
    expected = plainly(model, folder, resized)
    features = open_features(tmp_path / "out")
    assert features.names == names_in(folder)
    assert features.taps == ("C5", "C2.expansion")
    assert len(features) == 11
    assert close(features.tap("C5"), expected["C5"])
    whole = registry.build("mobilenet_v3_small", width=0.25, features_only=True, taps=("C2.expansion",)).eval()
    whole.load_state_dict(model.state_dict(), strict=False)
    assert close(features.tap("C2.expansion"), plainly(whole, folder, resized)["C2.expansion"])


def test_images_are_prepared_as_the_weights_want_unless_a_size_is_given(
    run: Run, weights: Path, folder: Path, tmp_path: Path, model: nn.Module
) -> None:
    ran = run("extract", folder, "--weights", weights, "--taps", "C3,C5", "--out", tmp_path / "out")
    assert ran.status == 0
    expected = plainly(model, folder, registry.transforms(model))
    features = open_features(tmp_path / "out")
    assert features.tap("C5").shape[2:] == (7, 7)
    assert close(features.tap("C3"), expected["C3"])
    assert close(features.tap("C5"), expected["C5"])


def test_pooled_features_are_means_of_maps(extract: Run, folder: Path, tmp_path: Path, model: nn.Module) -> None:
    assert extract(folder, "--taps", "C2,C5", "--pool", "--out", tmp_path / "out").status == 0
    for tap, maps in plainly(model, folder, resized).items():
        if tap in ("C2", "C5"):
            assert close(open_features(tmp_path / "out").tap(tap), maps.mean((2, 3)))


def test_half_precision_is_a_rounding_of_the_whole(extract: Run, folder: Path, tmp_path: Path) -> None:
    extract(folder, "--out", tmp_path / "whole")
    extract(folder, "--out", tmp_path / "half", "--dtype", "float16")
    whole, half = (open_features(tmp_path / name).tap("C5") for name in ("whole", "half"))
    assert half.dtype == np.float16
    assert (half == whole.astype(np.float16)).all()


def test_numbers_beyond_half_precision_are_an_error(run: Run, folder: Path, tmp_path: Path) -> None:
    large = oracles.randomised(registry.build("mobilenet_v3_small", width=0.25, features_only=True))
    weights = registry.save(large, tmp_path / "large.safetensors")
    asked = ("extract", folder, "--weights", weights, *SMALL)
    ran = run(*asked, "--dtype", "float16", "--out", tmp_path / "half")
    # The file's numbers are doubles; what is computed are floats.
    assert run(*asked, "--out", tmp_path / "whole").status == 0
    first = open_features(tmp_path / "whole").tap("C5")[0]
    beyond = first.flat[np.argmax(np.abs(first.reshape(-1)) >= 65520)]
    assert (ran.status, ran.out, ran.err) == (
        2,
        "",
        f"featuretap: C5 of 'a/b.jpg' has the value {beyond:.0f}, which float16 cannot hold; give --dtype float32 and "
        "another --out\n",
    )


def test_a_shard_can_be_read_with_the_library_alone(extract: Run, folder: Path, tmp_path: Path) -> None:
    extract(folder, "--out", tmp_path / "out", "--shard-size", 4, "--taps", "C3,C5")
    path = tmp_path / "out" / "features-00001-of-00003.safetensors"
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["featuretap.paths"]) == names_in(folder)[4:8]
    tensors = load_file(path)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"C3": (4, 8, 4, 6), "C5": (4, 144, 1, 2)}


def test_parquet_read_by_pyarrow_has_the_same_numbers(extract: Run, folder: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "float16"):
        here, there = tmp_path / f"p-{dtype}", tmp_path / f"s-{dtype}"
        common = (folder, "--taps", "C3,C5", "--shard-size", 4, "--dtype", dtype)
        assert extract(*common, "--format", "parquet", "--out", here).status == 0
        extract(*common, "--out", there)
        tables = [pyarrow.parquet.read_table(path) for path in sorted(here.glob("*.parquet"))]
        assert [table.num_rows for table in tables] == [4, 4, 3]
        assert [name for table in tables for name in table.column("path").to_pylist()] == names_in(folder)
        expected = open_features(there)
        for tap in ("C3", "C5"):
            rows = np.concatenate([np.array(table.column(tap).to_pylist(), dtype) for table in tables])
            assert (rows == expected.tap(tap).reshape(len(rows), -1)).all()
            assert (open_features(here).tap(tap) == expected.tap(tap)).all()
        assert json.loads(tables[0].schema.metadata[b"featuretap.shapes"])["C3"] == [8, 4, 6]


def test_features_come_back_shard_by_shard(extract: Run, folder: Path, tmp_path: Path) -> None:
    extract(folder, "--out", tmp_path / "out", "--shard-size", 4)
    features = open_features(tmp_path / "out")
    parts = list(features.parts())
    assert [len(part.names) for part in parts] == [4, 4, 3]
    assert [name for part in parts for name in part.names] == features.names
    assert (np.concatenate([part.taps["C5"] for part in parts]) == features.tap("C5")).all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("--batch-size", 1), ("--batch-size", 7)),
        (("--batch-size", 3), ("--batch-size", 3, "--workers", 1)),
    ],
)
def test_neither_batches_nor_workers_change_features(
    extract: Run, folder: Path, tmp_path: Path, one: tuple[object, ...], other: tuple[object, ...]
) -> None:
    (folder / "broken.jpg").write_bytes(b"no image")
    for name, how in (("one", one), ("other", other)):
        assert extract(folder, "--out", tmp_path / name, "--shard-size", 5, *how).status == 0
    a, b = (open_features(tmp_path / name) for name in ("one", "other"))
    assert a.names == b.names
    assert close(a.tap("C5"), torch.from_numpy(b.tap("C5")))


def test_the_manifest_says_what_the_features_are(extract: Run, folder: Path, tmp_path: Path, weights: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"no image")
    extract(folder, "--out", tmp_path / "out", "--shard-size", 8, "--taps", "C3")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["model"] == "mobilenet_v3_small"
    assert manifest["options"] == {"width": "0.25"}
    assert manifest["weights"] == str(weights)
    assert manifest["taps"] == {"C3": {"channels": 8, "stride": 8, "shape": [8, 4, 6]}}
    assert (manifest["size"], manifest["preprocessing"]["crop"]) == ([32, 48], None)
    assert (manifest["pooled"], manifest["dtype"], manifest["format"]) == (False, "float32", "safetensors")
    assert (manifest["images"], manifest["rows"]) == (12, 11)
    paths = [tmp_path / "out" / f"features-0000{number}-of-00002.safetensors" for number in (0, 1)]
    assert manifest["shards"] == [
        {"file": path.name, "rows": rows, "bytes": path.stat().st_size}
        for path, rows in zip(paths, (7, 4), strict=True)
    ]


def test_maps_make_smaller_shards_than_pooled_features(extract: Run, folder: Path, tmp_path: Path) -> None:
    extract(folder, "--out", tmp_path / "pooled", "--pool", "--taps", "C1", "--size", "512x512")
    extract(folder, "--out", tmp_path / "maps", "--taps", "C1", "--size", "512x512")
    sizes = [json.loads((tmp_path / name / "manifest.json").read_text())["shard_size"] for name in ("pooled", "maps")]
    # 8 channels of 256×256 floats are 2 MiB.
    assert sizes == [1024, 128]


def test_fresh_weights_are_the_same_every_time_if_they_are_asked_for(run: Run, folder: Path, tmp_path: Path) -> None:
    asked = ("extract", folder, "--model", "mobilenet_v2_050", "--weights", "none", "--taps", "C2", *SMALL)
    for name in ("one", "other"):
        assert run(*asked, "--out", tmp_path / name).status == 0
        torch.rand(1)
    assert bytes_in(tmp_path / "one") == bytes_in(tmp_path / "other")


def test_backbones_of_timm_are_extracted_too(run: Run, folder: Path, tmp_path: Path) -> None:
    ran = run("extract", folder, "--model", "timm/resnet18", "--weights", "none", *SMALL, "--out", tmp_path / "out")
    assert ran.status == 0
    assert open_features(tmp_path / "out").tap("C5").shape == (11, 512, 1, 2)


# Which images


def test_names_are_relative_to_a_single_folder_however_it_is_given(
    extract: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "broken.jpg").write_bytes(b"no image")
    extract(folder, "--out", tmp_path / "absolute")
    extract("images", "--out", "relative")
    assert bytes_in(tmp_path / "absolute") == bytes_in(tmp_path / "relative")


def test_names_of_several_sources_begin_with_the_source(
    extract: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert extract("c", "a", "z2.jpg", "a/b.jpg", "--out", tmp_path / "out").status == 0
    assert open_features(tmp_path / "out").names == ["a/b.jpg", "a/c.jpg", "c/b.jpg", "z2.jpg"]


def test_images_that_cannot_be_read_are_listed_and_left_out(
    extract: Run, folder: Path, tmp_path: Path, model: nn.Module
) -> None:
    good = names_in(folder)
    expected = plainly(model, folder, resized)["C5"]
    whole = (folder / "b.jpg").read_bytes()
    (folder / "b0.jpg").write_bytes(whole[:-200])
    (folder / "b1.jpg").touch()
    (folder / "b2.png").write_text("no image")
    (folder / "b3.jpg").symlink_to(folder / "b.jpg")
    os.rename(folder / "b3.jpg", os.fsencode(folder) + b"/\xff.jpg")
    ran = extract(folder, "--out", tmp_path / "out", "--shard-size", 3, "--batch-size", 2)
    assert ran.status == 0
    assert ran.err == (
        f"featuretap: 4 of 15 images cannot be read and are left out; see '{tmp_path / 'out' / 'errors.csv'}'\n"
    )
    assert ran.out.startswith(f"{tmp_path / 'out'}: 15 images, 4 bad, ")
    features = open_features(tmp_path / "out")
    assert features.names == good
    assert close(features.tap("C5"), expected)
    with (tmp_path / "out" / "errors.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "reason"]
    assert [row[0] for row in rows[1:]] == ["b0.jpg", "b1.jpg", "b2.png", "\\udcff.jpg"]
    assert rows[1][1].startswith("'b0.jpg' is damaged: image file is truncated")
    assert rows[2][1] == "'b1.jpg' is empty; give a JPEG, PNG or other image file"
    assert rows[3][1] == "'b2.png' is no image that Pillow can read; give a JPEG, PNG or other image file"
    assert rows[4][1].endswith(r"\udcff.jpg' has a name that is no UTF-8; rename it")


def test_a_long_strip_does_not_fill_the_memory(run: Run, weights: Path, folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20_000, 1)).save(folder / "strip.png")
    asked = ("extract", folder, "--weights", weights, "--out")
    assert run(*asked, tmp_path / "out").status == 0
    assert (tmp_path / "out" / "errors.csv").read_text() == (
        "image,reason\nstrip.png,\"'strip.png' of 20000×1 pixels is too long a strip to be resized to a shorter side "
        'of 256; crop it, or give a --size"\n'
    )
    assert run(*asked, tmp_path / "sized", *SMALL).err == ""


def test_a_shard_may_have_no_row_at_all(extract: Run, folder: Path, tmp_path: Path) -> None:
    for name in ("0.jpg", "1.jpg"):
        (folder / name).touch()
    for file_format in ("safetensors", "parquet"):
        out = tmp_path / file_format
        assert extract(folder, "--out", out, "--shard-size", 1, "--format", file_format).status == 0
        assert open_features(out).names == names_in(folder)[2:]
        assert open_features(out).tap("C5").shape == (11, 144, 1, 2)


# Runs that were broken


def test_a_killed_run_goes_on_to_the_same_bytes(extract: Run, folder: Path, tmp_path: Path, weights: Path) -> None:
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
    assert extract(*how, "--out", out).out.startswith(f"{out}: 56 images, {done} of them before, 1 bad, ")
    assert bytes_in(out) == bytes_in(tmp_path / "unbroken")
    assert {path: path.stat().st_mtime_ns for path in kept} == times


def test_a_finished_run_has_nothing_left_to_do(extract: Run, folder: Path, tmp_path: Path) -> None:
    how = (folder, "--out", tmp_path / "out")
    extract(*how)
    before = bytes_in(tmp_path / "out")
    assert extract(*how).out.startswith(f"{tmp_path / 'out'}: 11 images, 11 of them before, 0 bad, ")
    assert bytes_in(tmp_path / "out") == before


def test_what_a_kill_left_half_written_is_removed(extract: Run, folder: Path, tmp_path: Path) -> None:
    left = tmp_path / "out" / ".featuretap-0123456789ab.tmp"
    left.parent.mkdir()
    left.write_text("half")
    assert extract(folder, "--out", tmp_path / "out").status == 0
    assert not left.exists()


# What is refused


def everything_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def test_what_is_no_image_is_refused_before_a_model_is_built(
    run: Run, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    kinds = ".bmp, .gif, .jfif, .jpeg, .jpg, .pbm, .pgm, .png, .ppm, .tif, .tiff, .webp"
    for source, message in {
        "missing": "there is no folder or image 'missing'; give folders of images, or image files",
        "empty": f"'empty' holds no images; their names end in {kinds}",
    }.items():
        ran = run("extract", "images", source, "--model", "nonsense", "--out", "out")
        assert (ran.status, ran.out, ran.err) == (2, "", f"featuretap: {message}\n")
    assert not Path("out").exists()


def test_a_run_without_a_readable_image_is_an_error(extract: Run, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "1.jpg").touch()
    (images / "2.jpg").write_text("no image")
    ran = extract(images, "--out", tmp_path / "out")
    assert ran.status == 2
    assert ran.err == (
        "featuretap: none of the 2 images can be read, the first because '1.jpg' is empty; give a JPEG, PNG or other "
        f"image file; all are in '{tmp_path / 'out' / 'errors.csv'}'\n"
    )
    with pytest.raises(DataError) as error:
        open_features(tmp_path / "out")
    assert str(error.value) == (
        f"'{tmp_path / 'out'}' holds an unfinished run; run the same command again, which goes on with it"
    )


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ("C6", "'mobilenet_v3_small' has no tap 'C6'. Its taps: C1, "),
        ("C5,C5", "C5 is asked of 'mobilenet_v3_small' more than once; name each tap once"),
    ],
)
def test_taps_that_there_are_not_are_refused(
    extract: Run, folder: Path, tmp_path: Path, taps: str, message: str
) -> None:
    ran = extract(folder, "--taps", taps, "--out", tmp_path / "out")
    assert ran.status == 2
    assert ran.err.startswith(f"featuretap: {message}")
    assert not (tmp_path / "out").exists()


def test_models_that_read_no_pictures_are_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v3_small", width=0.25, in_channels=5, features_only=True)
    ran = run("extract", folder, "--weights", registry.save(model, tmp_path / "f.safetensors"), "--out", tmp_path / "o")
    assert ran.err == (
        "featuretap: 'mobilenet_v3_small' reads images of 5 channels, and a picture has 1 or 3; choose another model\n"
    )


def test_a_backbone_without_weights_is_refused_unless_fresh_ones_are_asked_for(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    ran = run("extract", folder, "--model", "mobilenet_v3_small_075_reduced", "--out", tmp_path / "out")
    assert ran.status == 2
    ran = run("extract", folder, "--model", "mobilenet_v3_small", "--weights", "nonsense", "--out", tmp_path / "out")
    assert ran.status == 2
    assert ran.err.startswith("featuretap: 'mobilenet_v3_small' has no weights 'nonsense'; its tags are ")


def test_a_folder_with_other_things_is_left_alone(extract: Run, folder: Path, tmp_path: Path) -> None:
    ran = extract(folder, "--out", folder)
    assert (ran.status, ran.err) == (
        2,
        f"featuretap: '{folder}' holds other things, such as 'a'; give a new folder as --out\n",
    )
    (tmp_path / "file").touch()
    ran = extract(folder, "--out", tmp_path / "file")
    assert ran.err == f"featuretap: '{tmp_path / 'file'}' is a file; give a folder as --out\n"
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text("[]")
    ran = extract(folder, "--out", other)
    assert ran.err == (
        f"featuretap: '{other / 'manifest.json'}' is none that featuretap extract wrote; give the --out of a run\n"
    )
    assert not {".lock"} & (everything_in(folder) | everything_in(other))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (("--taps", "C3"), 'taps: ["C5"] there, ["C3"] asked for'),
        (("--pool",), "pooling: false there, true asked for"),
        (("--size", "64x64"), "size of the images: [32, 48] there, [64, 64] asked for"),
        (("--dtype", "float16"), 'dtype: "float32" there, "float16" asked for'),
        (("--format", "parquet"), 'format: "safetensors" there, "parquet" asked for'),
        (("--shard-size", 5), "shard size: 1024 there, 5 asked for"),
        (
            ("--model", "mobilenet_v3_large", "--weights", "none"),
            'model: "mobilenet_v3_small" there, "mobilenet_v3_large"',
        ),
    ],
)
def test_another_run_does_not_go_on_in_a_folder(
    extract: Run, folder: Path, tmp_path: Path, change: tuple[object, ...], difference: str
) -> None:
    out = tmp_path / "out"
    extract(folder, "--out", out)
    before = bytes_in(out)
    ran = extract(folder, "--out", out, *change)
    assert ran.status == 2
    assert ran.err.startswith(f"featuretap: '{out}' holds features of another run ({difference}")
    assert ran.err.endswith("asked for); give another --out, or the same command again\n")
    assert bytes_in(out) == before


def test_other_weights_or_images_are_another_run(extract: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(folder, "--out", out)
    other = registry.build("mobilenet_v3_small", width=0.25, features_only=True)
    path = registry.save(other, tmp_path / "other.safetensors")

    def difference(*arguments: object) -> str:
        ran = extract(folder, "--out", out, *arguments)
        assert ran.status == 2
        found = re.search(r"another run \((\w[\w ]*): (\S+) there, (\S+) asked for\)", ran.err)
        assert found
        assert found[2] != found[3]
        return found[1]

    assert difference("--weights", path) == "weights"
    photograph(5).resize((200, 200)).save(folder / "b.jpg")
    assert difference() == "images"
    (folder / "new.jpg").touch()
    assert difference() == "number of images"


def test_a_damaged_shard_is_not_taken_for_a_finished_one(extract: Run, folder: Path, tmp_path: Path) -> None:
    for file_format in ("safetensors", "parquet"):
        out = tmp_path / file_format
        how = (folder, "--out", out, "--format", file_format, "--shard-size", 6)
        extract(*how)
        before = bytes_in(out)
        shard = out / f"features-00001-of-00002.{file_format}"
        shard.write_bytes(shard.read_bytes()[:-100])
        missing = out / f"features-00000-of-00002.{file_format}"
        missing.unlink()
        ran = extract(*how)
        assert not missing.exists()
        assert (ran.status, ran.err) == (
            2,
            f"featuretap: '{shard}' is no whole file of features; delete it, and run the same command again\n",
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
        f"featuretap: another process is writing features into '{out}'; wait for it, or give another --out\n",
    )
    assert extract(folder, "--out", out).status == 0


def test_features_that_the_disk_has_no_room_for_are_not_begun(tmp_path: Path) -> None:
    images = (ImageFile("cat.jpg", "/cat.jpg"),) * 11
    job = Job(images, {"C1": (8, 500_000, 500_000)}, False, "float32", "safetensors", 1, tmp_path / "out")
    with pytest.raises(DataError) as error, claimed(job, {}):
        pass
    assert re.fullmatch(
        rf"the features need 88,000\.0 GB, and '{job.folder}' has room for [\d,.]+; fewer --taps, --pool or --dtype "
        r"float16 need less",
        str(error.value),
    )
    assert bytes_in(job.folder) == {}


def test_a_full_disk_is_an_error_and_what_is_done_is_kept(extract: Run, folder: Path, tmp_path: Path) -> None:
    how = (folder, "--shard-size", 8, "--taps", "C1")
    extract(*how, "--out", tmp_path / "unbroken")
    out = tmp_path / "out"
    extract(*how, "--out", out)
    (out / "features-00000-of-00002.safetensors").unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        ran = extract(*how, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (ran.status, ran.err) == (
        2,
        f"featuretap: cannot write '{out / 'features-00000-of-00002.safetensors'}': File too large\n",
    )
    assert not list(out.glob(".featuretap-*"))
    assert extract(*how, "--out", out).status == 0
    assert bytes_in(out) == bytes_in(tmp_path / "unbroken")


def test_a_folder_that_may_not_be_written_into_is_an_error(extract: Run, folder: Path, tmp_path: Path) -> None:
    ran = extract(folder, "--out", "/proc/features")
    assert (ran.status, ran.err) == (2, "featuretap: cannot write into '/proc/features': No such file or directory\n")


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [(("--format", "parquet"), "pyarrow", "parquet"), (("--ray",), "ray", "ray")],
)
def test_what_an_extra_is_missing_for_is_said(
    extract: Run,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    module: str,
    extra: str,
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == module else object())
    ran = extract(folder, "--out", tmp_path / "out", *arguments)
    assert (ran.status, ran.err) == (
        2,
        f"featuretap: featuretap extract {' '.join(arguments)} needs {module}; pip install 'featuretap[{extra}]'\n",
    )
    assert not (tmp_path / "out").exists()


def test_features_are_not_looked_for_where_there_are_none(extract: Run, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_features(folder)
    assert str(error.value) == (f"'{folder}' holds no features: cannot read manifest.json: No such file or directory")
    extract(folder, "--out", tmp_path / "out", "--taps", "C3,C5")
    with pytest.raises(UnknownTapError) as unknown:
        open_features(tmp_path / "out").tap("C4")
    assert str(unknown.value) == f"'{tmp_path / 'out'}' has no tap 'C4'; its taps: C3, C5"
    (tmp_path / "out" / "features-00000-of-00001.safetensors").unlink()
    with pytest.raises(DataError, match=r"is no whole file of features; delete it, and run the same command again$"):
        open_features(tmp_path / "out").tap("C5")

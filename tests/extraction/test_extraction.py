"""Feature files of many images: their contents, and which images are read."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from support import oracles
from support.extraction import SMALL, Run, bytes_in, close, names_in, plainly, resized
from torch import nn

from featuretap import registry
from featuretap.workflows.extraction.reading import open_features


def test_features_equal_those_of_a_plain_loop(extract: Run, folder: Path, tmp_path: Path, model: nn.Module) -> None:
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


def test_images_are_preprocessed_as_for_the_weights_unless_a_size_is_given(
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


def test_float16_features_are_rounded_float32_features(extract: Run, folder: Path, tmp_path: Path) -> None:
    extract(folder, "--out", tmp_path / "whole")
    extract(folder, "--out", tmp_path / "half", "--dtype", "float16")
    whole, half = (open_features(tmp_path / name).tap("C5") for name in ("whole", "half"))
    assert half.dtype == np.float16
    assert (half == whole.astype(np.float16)).all()


def test_values_beyond_the_range_of_float16_are_an_error(run: Run, folder: Path, tmp_path: Path) -> None:
    large = oracles.randomised(registry.build("mobilenet_v3_small", width=0.25, features_only=True))
    weights = registry.save(large, tmp_path / "large.safetensors")
    asked = ("extract", folder, "--weights", weights, *SMALL)
    ran = run(*asked, "--dtype", "float16", "--out", tmp_path / "half")
    # The weights are float64 and features are computed in float32, so the expected value comes from a float32 run.
    assert run(*asked, "--out", tmp_path / "whole").status == 0
    first = open_features(tmp_path / "whole").tap("C5")[0]
    beyond = first.flat[np.argmax(np.abs(first.reshape(-1)) >= 65520)]
    assert (ran.status, ran.out, ran.err) == (
        2,
        "",
        f"featuretap: C5 of 'a/b.jpg' has the value {beyond:.0f}, which exceeds the range of float16; use --dtype "
        "float32 and another --out\n",
    )


def test_a_shard_can_be_read_with_the_library_alone(extract: Run, folder: Path, tmp_path: Path) -> None:
    extract(folder, "--out", tmp_path / "out", "--shard-size", 4, "--taps", "C3,C5")
    path = tmp_path / "out" / "features-00001-of-00003.safetensors"
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["featuretap.paths"]) == names_in(folder)[4:8]
    tensors = load_file(path)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"C3": (4, 8, 4, 6), "C5": (4, 144, 1, 2)}


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
        (("--torch", "--batch-size", 3), ("--torch", "--batch-size", 7, "--workers", 1)),
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


def test_the_manifest_describes_the_features(extract: Run, folder: Path, tmp_path: Path, weights: Path) -> None:
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
    # A map of 8 channels and 256×256 float32 values takes 2 MiB.
    assert sizes == [1024, 128]


def test_randomly_initialised_weights_are_the_same_in_every_run(run: Run, folder: Path, tmp_path: Path) -> None:
    asked = ("extract", folder, "--model", "mobilenet_v2_050", "--weights", "none", "--taps", "C2", *SMALL)
    for name in ("one", "other"):
        assert run(*asked, "--out", tmp_path / name).status == 0
        torch.rand(1)
    assert bytes_in(tmp_path / "one") == bytes_in(tmp_path / "other")


def test_backbones_of_timm_are_extracted_too(run: Run, folder: Path, tmp_path: Path) -> None:
    ran = run("extract", folder, "--model", "timm/resnet18", "--weights", "none", *SMALL, "--out", tmp_path / "out")
    assert ran.status == 0
    assert open_features(tmp_path / "out").tap("C5").shape == (11, 512, 1, 2)


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
        f"featuretap: skipped 4 of 15 images, which cannot be read; see '{tmp_path / 'out' / 'errors.csv'}'\n"
    )
    assert ran.out.startswith(f"{tmp_path / 'out'}: 15 images, 4 unreadable, ")
    features = open_features(tmp_path / "out")
    assert features.names == good
    assert close(features.tap("C5"), expected)
    with (tmp_path / "out" / "errors.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "reason"]
    assert [row[0] for row in rows[1:]] == ["b0.jpg", "b1.jpg", "b2.png", "\\udcff.jpg"]
    assert rows[1][1].startswith("'b0.jpg' is damaged: image file is truncated")
    assert rows[2][1] == "'b1.jpg' is empty; use a JPEG, PNG or other image file"
    assert rows[3][1] == "'b2.png' is not an image that Pillow can read; use a JPEG, PNG or other image file"
    assert rows[4][1].endswith(r"\udcff.jpg' has a name that is not UTF-8; rename it")


def test_a_long_strip_does_not_fill_the_memory(run: Run, weights: Path, folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20_000, 1)).save(folder / "strip.png")
    asked = ("extract", folder, "--weights", weights, "--out")
    assert run(*asked, tmp_path / "out").status == 0
    assert (tmp_path / "out" / "errors.csv").read_text() == (
        "image,reason\nstrip.png,\"'strip.png' of 20000×1 pixels is too elongated to be resized to a shorter side "
        'of 256; crop it, or set --size"\n'
    )
    assert run(*asked, tmp_path / "sized", *SMALL).err == ""


def test_a_shard_may_have_no_row_at_all(extract: Run, folder: Path, tmp_path: Path) -> None:
    for name in ("0.jpg", "1.jpg"):
        (folder / name).touch()
    out = tmp_path / "out"
    assert extract(folder, "--out", out, "--shard-size", 1).status == 0
    assert open_features(out).names == names_in(folder)[2:]
    assert open_features(out).tap("C5").shape == (11, 144, 1, 2)

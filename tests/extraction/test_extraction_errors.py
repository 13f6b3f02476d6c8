"""Errors of `featuretap extract` and `open_features`."""

import os
import re
from pathlib import Path

import pytest
from support.extraction import Run, bytes_in

from featuretap import registry
from featuretap.registry.errors import DataError, UnknownTapError
from featuretap.support import extras
from featuretap.support.image_files import SUFFIXES, ImageFile
from featuretap.workflows.extraction.job import Job
from featuretap.workflows.extraction.reading import open_features
from featuretap.workflows.extraction.running import lock_folder


def everything_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def test_sources_without_images_are_refused_before_a_model_is_built(
    run: Run, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    kinds = ", ".join(sorted(SUFFIXES))
    for source, message in {
        "missing": "there is no folder or image 'missing'; give folders of images, or image files",
        "empty": f"'empty' contains no images; supported suffixes are {kinds}",
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
        "featuretap: cannot read any of the 2 images (first error: '1.jpg' is empty; use a JPEG, PNG or other "
        f"image file); all errors are in '{tmp_path / 'out' / 'errors.csv'}'\n"
    )
    with pytest.raises(DataError) as error:
        open_features(tmp_path / "out")
    assert str(error.value) == (
        f"'{tmp_path / 'out'}' contains an unfinished run; run the same command again to finish it"
    )


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ("C6", "'mobilenet_v3_small' has no tap 'C6'. Available taps: C1, "),
        ("C5,C5", "taps of 'mobilenet_v3_small' repeats C5; name each tap once"),
    ],
)
def test_unknown_and_repeated_taps_are_refused(
    extract: Run, folder: Path, tmp_path: Path, taps: str, message: str
) -> None:
    ran = extract(folder, "--taps", taps, "--out", tmp_path / "out")
    assert ran.status == 2
    assert ran.err.startswith(f"featuretap: {message}")
    assert not (tmp_path / "out").exists()


def test_models_for_images_of_five_channels_are_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v3_small", width=0.25, in_channels=5, features_only=True)
    ran = run("extract", folder, "--weights", registry.save(model, tmp_path / "f.safetensors"), "--out", tmp_path / "o")
    assert ran.err == (
        "featuretap: 'mobilenet_v3_small' takes images with 5 channels, but image files have 1 or 3; choose "
        "another model\n"
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
        f"featuretap: '{folder}' contains other files, such as 'a'; use a new folder as --out\n",
    )
    (tmp_path / "file").touch()
    ran = extract(folder, "--out", tmp_path / "file")
    assert ran.err == f"featuretap: '{tmp_path / 'file'}' is a file; use a folder as --out\n"
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text("[]")
    ran = extract(folder, "--out", other)
    assert ran.err == (
        f"featuretap: '{other / 'manifest.json'}' was not written by featuretap extract; use the --out folder of a "
        "run\n"
    )
    assert not {".lock"} & (everything_in(folder) | everything_in(other))


def test_a_run_does_not_begin_without_room_on_the_disk(tmp_path: Path) -> None:
    images = (ImageFile("cat.jpg", "/cat.jpg"),) * 11
    job = Job(images, {"C1": (8, 500_000, 500_000)}, False, "float32", "safetensors", 1, tmp_path / "out")
    with pytest.raises(DataError) as error, lock_folder(job, {}):
        pass
    assert re.fullmatch(
        rf"the features need 88,000\.0 GB, but '{job.folder}' only has [\d,.]+ GB free; use fewer --taps, --pool or "
        r"--dtype float16",
        str(error.value),
    )
    assert bytes_in(job.folder) == {}


def test_a_folder_that_may_not_be_written_into_is_an_error(extract: Run, folder: Path, tmp_path: Path) -> None:
    ran = extract(folder, "--out", "/proc/features")
    assert (ran.status, ran.err) == (2, "featuretap: cannot write to '/proc/features': No such file or directory\n")


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [(("--format", "parquet"), "pyarrow", "parquet"), (("--ray",), "ray", "ray")],
)
def test_a_missing_extra_is_named_with_its_option(
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
        f"featuretap: featuretap extract {' '.join(arguments)} needs {module}; run pip install 'featuretap[{extra}]'\n",
    )
    assert not (tmp_path / "out").exists()


def test_opening_a_folder_without_features_is_an_error(extract: Run, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_features(folder)
    assert str(error.value) == (
        f"'{folder}' contains no features: cannot read manifest.json: No such file or directory"
    )
    extract(folder, "--out", tmp_path / "out", "--taps", "C3,C5")
    with pytest.raises(UnknownTapError) as unknown:
        open_features(tmp_path / "out").tap("C4")
    assert str(unknown.value) == f"'{tmp_path / 'out'}' has no tap 'C4'; its taps: C3, C5"
    (tmp_path / "out" / "features-00000-of-00001.safetensors").unlink()
    with pytest.raises(DataError, match=r"is not a complete features file; delete it and run the same command again"):
        open_features(tmp_path / "out").tap("C5")


def test_a_pipe_in_place_of_the_manifest_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(DataError) as error:
        open_features(tmp_path)
    assert str(error.value) == (
        f"{str(tmp_path)!r} contains no features: cannot read manifest.json: it is a pipe, socket or device; use a file"
    )

"""`featuretap save`, `convert` and `inspect`, and predictions with weights files, on the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from support import Completed
from support.package import heavy_modules_after

from featuretap.registry import Registry

Run = Callable[..., Completed]


def refused(ran: Completed, message: str) -> None:
    assert (ran.status, ran.out, ran.err) == (2, "", f"featuretap: {message}\n")


@pytest.fixture
def classifier(registry: Registry, tmp_path: Path) -> Path:
    model = registry.build("mobilenet_v2_050", num_classes=3, in_channels=1)
    return registry.save(model, tmp_path / "three.safetensors")


def test_a_published_file_is_converted_inspected_and_predicts(
    run: Run, tmp_path: Path, official_weights: Path, cat: Path
) -> None:
    folder = tmp_path / "folder"
    ran = run("convert", official_weights, folder, "--layout", "timm")
    assert (ran.status, ran.out, ran.err) == (0, f"saved: {folder}/model.safetensors\n", "")
    lines = run("inspect", folder).out.splitlines()
    assert lines[0] == f"{folder}/model.safetensors: mobilenet_v2"
    assert "  head          classification, 1000 classes imagenet1k" in lines
    assert "  layout        timm" in lines
    assert "  norm eps      backbone=1e-05" in lines
    assert "  weights       mobilenet_v2.imagenet1k_v1" in lines
    assert not any("conv_stem.weight" in line for line in lines)
    listed = [line.split() for line in run("inspect", folder, "--tensors").out.splitlines()]
    assert ["conv_stem.weight", "32×3×3×3", "F32"] in listed
    assert "Egyptian cat         0.717" in run("predict", cat, "--weights", folder, "--top", 1).out
    ran = run("taps", cat, "--weights", folder, "--taps", "C3", "--out", tmp_path / "taps.png")
    assert ran.out.startswith("mobilenet_v2, weights: mobilenet_v2.imagenet1k_v1, image: ")


def test_inspect_lists_tensors_in_natural_order(run: Run, official_weights: Path) -> None:
    lines = run("inspect", official_weights, "--tensors").out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("features.")]
    assert [int(name.split(".")[1]) for name in names] == sorted(int(name.split(".")[1]) for name in names)
    assert len(names) == 312


def test_inspect_prints_everything_as_json(run: Run, classifier: Path) -> None:
    facts = json.loads(run("inspect", classifier, "--json").out)
    tensors = facts.pop("tensors")
    assert tensors["head.logits.weight"] == {"dtype": "F32", "shape": [3, 1280]}
    assert set(tensors) == set(safetensors.torch.load_file(classifier))
    assert len(facts.pop("sha256")) == 64
    assert facts == {
        "file": str(classifier),
        "bytes": classifier.stat().st_size,
        "described": True,
        "name": "mobilenet_v2_050",
        "options": {"in_channels": 1},
        "taps": ["C5"],
        "head": "classification",
        "num_classes": 3,
        "layout": "featuretap",
        "norm_eps": {"backbone": 1e-05},
        "classes": "",
        "heads": {},
        "weights": None,
        "preprocessing": {
            "resize": 256,
            "crop": 224,
            "mean": [pytest.approx(0.449)],
            "std": [pytest.approx(0.226)],
            "interpolation": "bilinear",
        },
    }


def test_inspect_recognises_files_without_metadata(run: Run, tmp_path: Path, official_weights: Path) -> None:
    ran = run("inspect", official_weights)
    assert ran.out.splitlines()[0] == f"{official_weights}: mobilenet_v2 (identified from its tensors)"
    assert "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889" in ran.out
    assert "mobilenet_v2.imagenet1k_v1" in ran.out
    safetensors.torch.save_file(timm.create_model("mobilenetv3_small_075").state_dict(), tmp_path / "a.safetensors")
    facts = json.loads(run("inspect", tmp_path / "a.safetensors", "--json").out)
    assert (facts["name"], facts["layout"], facts["preprocessing"]) == ("mobilenet_v3_small_075", "timm", None)
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "b.safetensors")
    assert run("inspect", tmp_path / "b.safetensors").out.startswith(f"{tmp_path}/b.safetensors: unknown model\n")


def test_inspect_needs_no_torch(classifier: Path) -> None:
    code = (
        "from featuretap.command_line import main\n"
        f"try: main(['inspect', {str(classifier)!r}])\nexcept SystemExit: pass"
    )
    assert heavy_modules_after(code) == []


def test_save_writes_what_build_makes(run: Run, registry: Registry, tmp_path: Path, official_weights: Path) -> None:
    target = tmp_path / "file.safetensors"
    arguments = ["--weights", official_weights, "--features-only", "--option", "output_stride=16"]
    ran = run("save", "mobilenet_v2", target, *arguments)
    assert (ran.status, ran.out, ran.err) == (0, f"saved: {target}\n", "")
    said = registry.load(target).description
    assert (said.name, said.head, dict(said.options)) == ("mobilenet_v2", None, {"output_stride": 16})
    assert said.weights == "mobilenet_v2.imagenet1k_v1"
    assert run("save", "mobilenet_v1_025", target, "--weights", "none", "--num-classes", 4).status == 0
    assert registry.load(target).description.num_classes == 4


def test_notes_go_to_standard_error_as_plain_lines(tmp_path: Path, official_weights: Path) -> None:
    command = [sys.executable, "-m", "featuretap.command_line", "save", "mobilenet_v2", "file.safetensors"]
    ran = subprocess.run(
        [*command, "--weights", str(official_weights), "--num-classes", "4"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (ran.returncode, ran.stdout) == (0, "saved: file.safetensors\n")
    assert ran.stderr == (
        f"'mobilenet_v2': loaded the backbone from {official_weights}; head.logits is randomly initialized (the file "
        "has 1000 classes, the model 4)\n"
    )


def test_bad_input_is_a_one_line_error(run: Run, tmp_path: Path, classifier: Path, cat: Path) -> None:
    (tmp_path / "web.safetensors").write_text("<html>not found</html>")
    (tmp_path / "empty").mkdir()
    web = (
        f"'{tmp_path}/web.safetensors' is not a weights file: it is a web page, such as the error page of a failed "
        "download; download it again"
    )
    absent = f"cannot read the weights '{tmp_path}/absent.safetensors': No such file or directory"
    refused(run("inspect", tmp_path / "web.safetensors"), web)
    refused(run("inspect", tmp_path / "absent.safetensors"), absent)
    refused(run("inspect", tmp_path / "absent.safetensors", "--finite"), absent)
    refused(run("convert", tmp_path / "absent.safetensors", tmp_path / "b.safetensors"), absent)
    refused(
        run("inspect", tmp_path / "empty"),
        f"the folder '{tmp_path}/empty' does not contain model.safetensors; pass a folder that registry.save wrote",
    )
    refused(
        run("convert", classifier, tmp_path / "file.pth"),
        f"cannot save to '{tmp_path}/file.pth': .pth files are not supported; use a name that ends in .safetensors, or "
        "a folder",
    )
    refused(
        run("convert", classifier, tmp_path / "b.safetensors", "--layout", "caffe"),
        "cannot save 'mobilenet_v2_050' with in_channels=1 in the layout 'caffe': 'mobilenet_v2_050' does not support "
        "the layout 'caffe'; it supports featuretap, torchvision, timm, tensorflow",
    )
    refused(
        run("save", "mobilenet_v9", tmp_path / "b.safetensors"),
        "no backbone named 'mobilenet_v9'; did you mean 'mobilenet_v2'?",
    )
    for pair in ("name=foo", "self=1", "features_only=true", "pretrained=true"):
        word = pair.partition("=")[0]
        refused(
            run("save", "mobilenet_v2", tmp_path / "b.safetensors", "--weights", "none", "--option", pair),
            f"Invalid value for '--option': {word!r} is not an option of a backbone or a head; see --help",
        )
        assert run("show", "mobilenet_v2", "--option", pair).status == 2
    refused(
        run("show", "mobilenet_v2", "--option", "num_classes=3"),
        "Invalid value for '--option': 'num_classes' has its own flag; use --num-classes, or NAME.num_classes=... for "
        "one of several heads",
    )
    bare = tmp_path / "bare.safetensors"
    run("save", "mobilenet_v2_050", bare, "--weights", "none", "--features-only")
    refused(
        run("predict", cat, "--weights", bare),
        f"cannot predict with '{bare}': it has no classifier, detector or segmenter for 'mobilenet_v2_050'",
    )


def test_inspect_finite_finds_nan_and_infinity(run: Run, registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v2_050")
    with torch.no_grad():
        model.head.logits.bias[3] = float("nan")
    path = registry.save(model, tmp_path / "file.safetensors")
    assert run("inspect", path).status == 0
    refused(
        run("inspect", path, "--finite"),
        f"'{path}' contains NaN or infinity in head.logits.bias; the training diverged, or the file is damaged",
    )

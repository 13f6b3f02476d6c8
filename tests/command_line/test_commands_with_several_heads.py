"""Several heads on the command line: named heads, options for each head, and files that contain several."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import Completed

from featuretap.registry import Registry

Run = Callable[..., Completed]

SMALLEST = "mobilenet_v3_small_050"
HEADS = ("--head", "objects=ssdlite", "--head", "road=lraspp", "--option", "road.num_classes=2")


def refused(ran: Completed, message: str) -> None:
    assert (ran.status, ran.out, ran.err) == (2, "", f"featuretap: {message}\n")


@pytest.fixture
def several(registry: Registry, tmp_path: Path) -> Path:
    model = registry.build(
        SMALLEST,
        head={"objects": "ssdlite", "road": "lraspp"},
        objects={"num_classes": 3, "size": 64},
        road={"num_classes": 2},
    )
    return registry.save(model, tmp_path / "several.safetensors")


def test_show_counts_the_backbone_once_and_each_head(run: Run, registry: Registry) -> None:
    facts = json.loads(run("show", SMALLEST, *HEADS, "--size", "64x96", "--json").out)
    spec = registry.spec(SMALLEST, head={"objects": "ssdlite", "road": "lraspp"}, road={"num_classes": 2})
    assert facts["model"] == {"parameters": spec.parameters, "macs": spec.macs(64, 96)}
    for cost in ("parameters", "macs"):
        parts = [facts["backbone"], *facts["heads"].values()]
        assert sum(part[cost] for part in parts) == facts["model"][cost]
    assert facts["heads"]["road"]["outputs"] == {"out": [2, 64, 96]}
    assert facts["heads"]["objects"]["reads"] == ["C4.expansion", "C5"]
    assert list(facts["taps"]) == list(registry.spec(SMALLEST, features_only=True).addresses)


def test_show_prints_every_head(run: Run) -> None:
    lines = run("show", SMALLEST, *HEADS).out.splitlines()
    costs = [line.split(maxsplit=1)[0] for line in lines if "multiply-adds at" in line]
    assert costs == ["backbone", "objects", "road", "total"]
    assert "  options      road.num_classes=2" in lines
    assert "road: LR-ASPP segmentation" in lines
    outputs = [line.split() for line in lines[-4:]]
    assert outputs == [
        ["objects.boxes", "0…300×4"],
        ["objects.labels", "0…300"],
        ["objects.scores", "0…300"],
        ["road.out", "2×224×224"],
    ]


def test_heads_without_names_are_called_as_in_the_registry(run: Run) -> None:
    facts = json.loads(run("show", SMALLEST, "--head", "fpn", "--head", "lraspp", "--json").out)
    assert list(facts["heads"]) == ["fpn", "lraspp"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--head", "lraspp", "--head", "lraspp"),
            "Invalid value for '--head': two heads are named 'lraspp'; give each a different name, such as road=lraspp",
        ),
        (
            ("--head", "=lraspp"),
            "Invalid value for '--head': '=lraspp' is not a head; write HEAD or NAME=HEAD, such as road=lraspp",
        ),
        (
            ("--head", "lraspp", "--head", "fpn", "--num-classes", 3),
            "num_classes=3 is an option of one head, but the model has several; pass it under the head's name: "
            "--option "
            "lraspp.num_classes=3",
        ),
        (
            ("--head", "lraspp", "--head", "fpn", "--taps", "C3,C5"),
            "taps=('C3', 'C5') is an option of one head, but the model has several; pass it under the head's name: "
            "--option \"lraspp.taps=['C3', 'C5']\"",
        ),
        (
            ("--head", "road=lraspp", "--option", "road.output_stride=8"),
            "output_stride of 'road' is shared by all heads; pass it outside the options of the heads: --option "
            "output_stride=8",
        ),
        (
            ("--head", "road=lraspp", "--option", "road=8"),
            "road=8 is not a mapping of options for the head 'lraspp'; pass a dict: --option road.num_classes=21",
        ),
        (
            ("--head", "road=lraspp", "--option", "road=8", "--option", "road.num_classes=8"),
            "Invalid value for '--option': 'road' is set as an option, but 'road.num_classes' treats it as the name of "
            "a head; remove one of them",
        ),
        (
            ("--head", "road=lraspp", "--option", "raod.num_classes=8"),
            "no head named 'raod'; did you mean 'road'? heads: road",
        ),
        (
            ("--option", "road.lanes.num_classes=8"),
            "Invalid value for '--option': 'road.lanes.num_classes=8' is not an option; write NAME=VALUE, such as "
            "width=0.5",
        ),
    ],
    ids=["twice", "no name", "num_classes", "taps", "shared", "no mapping", "both", "misspelled", "nested"],
)
def test_what_names_no_heads_is_refused(run: Run, arguments: tuple[object, ...], message: str) -> None:
    refused(run("show", SMALLEST, *arguments), message)


def test_a_model_with_several_heads_is_saved_and_inspected(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "several.safetensors"
    ran = run("save", SMALLEST, path, "--weights", "none", *HEADS, "--option", "objects.size=64")
    assert (ran.status, ran.out, ran.err) == (0, f"saved: {path}\n", "")
    lines = run("inspect", path).out.splitlines()
    assert "  heads         objects, road" in lines
    assert [" ".join(line.split()) for line in lines[-2:]] == [
        "objects ssdlite, 91 classes C4.expansion, C5 size=64",
        "road lraspp, 2 classes C3.depthwise, C5",
    ]
    road = json.loads(run("inspect", path, "--json").out)["heads"]["road"]
    assert (road["head"], road["num_classes"], road["reads"]) == ("lraspp", 2, ["C3.depthwise", "C5"])
    assert road["preprocessing"]["crop"] is None


def test_all_heads_or_one_of_a_file_are_exported(run: Run, registry: Registry, tmp_path: Path, several: Path) -> None:
    for name, arguments in {"several.onnx": (), "road.onnx": ("--head", "road")}.items():
        ran = run("export", several, tmp_path / name, *arguments)
        assert (ran.status, ran.err) == (0, "")
    assert list(registry.session(tmp_path / "several.onnx").description.heads) == ["objects", "road"]
    assert registry.session(tmp_path / "road.onnx").description.head == "lraspp"


def test_heads_are_built_and_exported(run: Run, registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "several.onnx"
    assert run("export", SMALLEST, path, "--weights", "none", "--size", 64, *HEADS).status == 0
    assert list(registry.session(path).description.heads) == ["objects", "road"]


def test_a_head_is_extracted_and_joined_again(run: Run, tmp_path: Path, several: Path) -> None:
    files = {name: tmp_path / f"{name}.safetensors" for name in ("objects", "road")}
    for name, file in files.items():
        assert run("convert", several, file, "--head", name).out == f"saved: {file}\n"
    assert json.loads(run("inspect", files["road"], "--json").out)["head"] == "lraspp"
    joined = tmp_path / "joined.safetensors"
    ran = run("join", *(f"{name}={file}" for name, file in files.items()), joined)
    assert (ran.status, ran.out, ran.err) == (0, f"saved: {joined}\n", "")
    before, after = load_file(several), load_file(joined)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("convert", "{path}", "{out}"),
            "'{path}' contains a model with several heads: objects, road; choose one, such as with --head objects",
        ),
        (
            ("convert", "{path}", "{out}", "--head", "raod"),
            "the model has no head 'raod'; did you mean 'road'? its heads are objects, road",
        ),
        (
            ("export", "{path}", "{out}.onnx", "--head", "road=lraspp"),
            "the file '{path}' defines its own heads; use --head once, to select one of them",
        ),
        (
            ("export", "{path}", "{out}.onnx", "--num-classes", "3"),
            "'{path}' contains a model with several heads: objects, road; choose one, such as with --head objects",
        ),
        (
            ("quantize", "{path}", "{out}.onnx", "--images", "{images}"),
            "cannot quantize the detector 'objects' together with other heads; quantize each head separately: "
            "--head objects",
        ),
        (
            ("save", SMALLEST, "{out}", "--weights", "none", *HEADS, "--layout", "timm"),
            "cannot save a model with several heads in the layout 'timm', which supports one; save one head: "
            "`featuretap convert --head objects`",
        ),
        (
            ("join", "{path}", "{out}"),
            "Invalid value for 'NAME=FILE...': '{path}' does not name a head; write NAME=FILE, such as "
            "road=segmenter.safetensors",
        ),
        (("join", "a={path}", "a={path}", "{out}"), "two heads are named 'a'; give each a different name"),
        (
            ("join", "a={path}", "b={path}", "{out}"),
            "'mobilenet_v3_small_050' is a model with several heads; pass a model with one head",
        ),
    ],
    ids=["convert", "misspelled", "named", "classes", "quantize", "timm", "no name", "twice", "join"],
)
def test_what_cannot_be_done_with_several_heads_is_refused(
    run: Run, tmp_path: Path, several: Path, cat: Path, arguments: tuple[str, ...], message: str
) -> None:
    paths = {"path": str(several), "out": str(tmp_path / "out"), "images": str(cat.parent)}
    refused(run(*(argument.format(**paths) for argument in arguments)), message.format(**paths))

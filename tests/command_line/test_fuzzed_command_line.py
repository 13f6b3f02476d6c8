"""Generated command lines never print a traceback, whatever their arguments and the contents of the files they name.

By default, 300 fixed command lines run. FEATURETAP_FUZZ_EXAMPLES=20000 runs that many random ones. They run in this
process, through the entry point of the installed script. Commands, arguments and options are taken from click's
definitions. Nothing is downloaded, and no long computation is started.
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image
from support.damage import damaged

import featuretap
from featuretap.command_line import command, main
from featuretap.registry import Registry
from featuretap.support.text import CONTROLLING

# Keep Hypothesis from writing into the repository.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "featuretap-hypothesis")

ASKED = os.environ.get("FEATURETAP_FUZZ_EXAMPLES")

STATUSES = {0, 1, 2}
"""The others, 130, 141 and 143, are of interruptions and closed pipes."""

LONGEST = 1_100
"""Characters of a line on standard error: those of a message, and what names the program before it."""

BOUNDS = {
    "bench": ("--rounds", "1", "--size", "32", "--batch", "1"),
    "doctor": ("--quick",),
    "evaluate": ("--workers", "0"),
    "extract": ("--workers", "0"),
    "quantize": ("--size", "32"),
    "train": ("--workers", "0", "--epochs", "1", "--batch-size", "2", "--size", "32"),
}
"""Command → what follows its other options, so that it takes neither long nor many processes."""

NAMES = ["mobilenet_v1_025", "mobilenet_v3_small"]
IMAGES = ["image.png", "grey.jpg", "thin.png", "images", "classes"]
WEIGHTS = ["none", "model.safetensors", "stem.safetensors", "state.pth"]
LIKELY = {
    **dict.fromkeys(("name", "model", "backbone", "names"), NAMES),
    **dict.fromkeys(("image", "sources", "images", "evaluate_on"), IMAGES),
    "source": [*NAMES, *WEIGHTS],
    "file": WEIGHTS,
    "weights": WEIGHTS,
    "data": ["classes", "images", "data.yaml"],
    "out": ["new", "new.png"],
    "target": ["new.safetensors", "new.onnx", "new"],
    **{name: ["32", "33x40", "1"] for name in ("size", "sizes")},
    "taps": ["C5", "C3,C5", "C1"],
    "head": ["classification", "fpn", "lraspp"],
    "options": ["width=0.5", "output_stride=16", "in_channels=1"],
    "runtimes": ["eager", "onnxruntime"],
    "config": ["settings.toml"],
}
"""Parameter → what makes a command go on."""

OMITTED = {"--ray"}
"""Options that start a cluster."""


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, each in sorted(group.commands.items()):
        yield (*path, name), each
        if isinstance(each, click.Group):
            yield from commands(each, (*path, name))


COMMANDS = list(commands(command))

WORDS = [
    *("", " ", "x", "none", "0", "-1", "1", "2", "3.5", "1e400", "nan", "-inf", "1_000", "٣", "9" * 30, "9" * 5000),
    *("mobilenet_v1_025", "mobilenet_v3_small", "fdet", "imagenet1k_v1", "mobilenet_v2.imagenet1k_v1", "digits"),
    *("C5", "C3,C5", "C3,,C3", "C9", "C4.expansion", "32", "32x32", "0x0", "32x", "x", "32x32x32"),
    *(
        "é",
        "網",
        "\udcff",
        "\x1b[31mred\x1b[0m",
        "a\nb",
        "\t",
        "\u202e",
        "\U0001f600",
        "*",
        "[",
        "%s",
        "%00",
        "{}",
        "~",
    ),
    *("width=0.5", "width=", "=", "width=[[[[", "width='a'", "taps=1", "norm=1", "freeze=C2", "x=" + "[" * 2000),
    *("fpn", "ssdlite", "classification", "lraspp", "eager", "onnxruntime", "timm", "openvino", "timm/", "timm/resnet"),
    *("pkg://x/y", "pkg://", "hf://", "hf://a/b", "hf-hub:a/b", "file://", "file:///a%00b.pth", "file:///nothing.pth"),
    *(
        "https://x.invalid/a%00b.png",
        "http://[",
        "http://",
        "https://x.invalid/" + "a" * 3000,
        "http://127.0.0.1:99999/a",
    ),
    *("cpu", "cuda:99", "auto", "bf16", "a" * 300, "a/" * 3000, ".", "--", "-", "-x", "--no-such-option"),
]
"""What is typed where anything may be."""


def pixels(size: tuple[int, int] = (24, 24), mode: str = "RGB", kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def contents(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Map file names to the contents of small files of each kind that a command reads."""
    import torch

    folder = tmp_path_factory.mktemp("files")
    model = registry.build("mobilenet_v1_025", num_classes=2)
    backbone = registry.build("mobilenet_v3_small", features_only=True, taps=("C1",))
    found = {
        "model.safetensors": registry.save(model, folder / "model.safetensors").read_bytes(),
        "stem.safetensors": registry.save(backbone, folder / "stem.safetensors").read_bytes(),
        "grey.jpg": pixels(mode="L", kind="jpeg"),
        "image.png": pixels(),
        "thin.png": pixels((1, 300)),
        "settings.toml": b'data = "classes"\nepochs = 1\n',
        "featuretap.toml": b'schema = 1\n[backbones.mine]\nbase = "mobilenet_v2"\noptions = { width = 0.5 }\n',
        "empty.pth": b"",
        "text.csv": b"a,b\n1,2\n",
        "data.yaml": b"path: .\ntrain: images\nnames: [a, b]\n",
        "annotations.json": json.dumps({"images": [], "annotations": [], "categories": []}).encode(),
        "model.onnx": b"\x08\x08\x12\x00",
    }
    buffer = io.BytesIO()
    torch.save({"state_dict": {"stages.C1.0.conv.weight": torch.zeros(2, 3, 3, 3)}}, buffer)
    return found | {"state.pth": buffer.getvalue(), "state.bin": buffer.getvalue()}


FOLDERS = ("classes/cat", "classes/dog", "classes/cl\udce9", "empty", "images", "masks")


def lay_out(folder: Path, contents: dict[str, bytes]) -> None:
    """Write the files, folders that contain copies of them, and links that are dangling or circular."""
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
        if name != "empty":
            (folder / name / "1.png").write_bytes(contents["image.png"])
            (folder / name / "2\udcff.png").write_bytes(contents["image.png"])
    (folder / "loop").symlink_to("loop")
    (folder / "classes" / "round").symlink_to("..")
    (folder / "images" / "dangling.png").symlink_to("nothing")
    (folder / "no\udcfft-utf8.png").write_bytes(contents["image.png"])


PATHS = [
    *("loop", "loop/x.png", "classes", "classes/round", "empty", "images", "masks", "no\udcfft-utf8.png", "absent.png"),
    *("absent/x.safetensors", "new.safetensors", "new.onnx", "new.png", "new", "new.pt2", "image.png/x.png", "."),
    *("\x1b[31m.png", "a\nb.png"),
]


@st.composite
def values(draw: st.DrawFn, parameter: click.Parameter, files: list[str]) -> str:
    """Generate a value for a parameter, usually of the type that the parameter takes."""
    kind = parameter.type
    if parameter.name in LIKELY and draw(st.integers(0, 2)):
        return draw(st.sampled_from(LIKELY[parameter.name]))
    if isinstance(kind, click.Choice) and draw(st.integers(0, 3)):
        return draw(st.sampled_from(list(map(str, kind.choices))))
    if isinstance(kind, (click.types.IntParamType, click.types.FloatParamType)) and draw(st.integers(0, 2)):
        numbers = ["0", "1", "2", "-1", "0.5", "32", "4294967296", "1e30", "nan", "inf"]
        return draw(st.sampled_from(numbers))
    if draw(st.integers(0, 2)):
        return draw(st.sampled_from([*files, *PATHS]))
    # Command-line arguments cannot contain NUL.
    return draw(st.one_of(st.sampled_from(WORDS), st.text(st.characters(exclude_characters="\0/"), max_size=20)))


@st.composite
def command_lines(draw: st.DrawFn, files: list[str]) -> list[str]:
    """Generate a command with some of its options, occasionally with a missing or an extra argument."""
    path, chosen = draw(st.sampled_from(COMMANDS))
    line = list(path)
    for parameter in chosen.params:
        if isinstance(parameter, click.Option):
            if parameter.opts[0] in OMITTED or (draw(st.integers(0, 5)) and not parameter.required):
                continue
            line.append(draw(st.sampled_from(parameter.opts)))
            if not parameter.is_flag:
                line.append(draw(values(parameter, files)))
        elif draw(st.integers(0, 9)):
            line.append(draw(values(parameter, files)))
    if draw(st.integers(0, 9)) == 0:
        line.insert(draw(st.integers(0, len(line))), draw(st.sampled_from(WORDS)))
    return line


def bounded(line: list[str]) -> list[str]:
    """Append options that limit the computation; click uses the last value of a repeated option."""
    bounds = BOUNDS.get(line[0], ())
    if line[0] == "train" and not {"--backbone", "--model", "--config", "--resume", "--weights"} & set(line):
        bounds = ("--backbone", "mobilenet_v1_025", *bounds)
    return [*line, *bounds, *(("--epochs", "0") if line[0] == "train" and "digits" in line else ())]


class Stream(io.TextIOWrapper):
    """An in-memory stream with the settings of a terminal's stream."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8", "strict", write_through=True)

    def content(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined]


def run(line: list[str]) -> tuple[int, str, str]:
    """Return the exit status, standard output and standard error of a command line. Uncaught exceptions propagate."""
    out, err = Stream(), Stream()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(line)
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 0
    return status, out.content(), err.content()


@pytest.fixture(scope="module")
def template(contents: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    lay_out(folder, contents)
    return folder


@st.composite
def changed_files(draw: st.DrawFn, contents: dict[str, bytes]) -> tuple[str, bytes]:
    """Generate the name of one of the files and its content, usually damaged."""
    name = draw(st.sampled_from(sorted(contents)))
    return name, draw(damaged(contents[name], [b"0", b'"', b"{"], [b"\0", b'"a"', b"\xff", b"[" * 2000, b"\x1b[31m"]))


# Library warnings raised as errors would look like exceptions that users never see.
@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=int(ASKED or 300),
    derandomize=ASKED is None,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_command_line_gives_a_traceback(
    template: Path, contents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    line = data.draw(command_lines(sorted(contents)))
    name, content = data.draw(changed_files(contents))
    folder = tmp_path / "here"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder, symlinks=True)
    (folder / name).write_bytes(content)
    monkeypatch.chdir(folder)
    # Nothing listens on port 9, so pushes fail.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    if data.draw(st.integers(0, 5)) == 0:
        monkeypatch.setenv("FEATURETAP_CONFIG", "featuretap.toml")
        default = featuretap.registry.default
        monkeypatch.setattr(default, "__dict__", {**vars(default), "_state": "unread"})
    status, out, err = run(bounded(line))
    event(f"{line[0] if (line[0],) in dict(COMMANDS) else 'another'}: {status}")
    assert status in STATUSES
    assert "Traceback" not in out + err
    assert not CONTROLLING.search(out + err)
    assert max(map(len, err.splitlines()), default=0) <= LONGEST
    if status == 2:
        assert err

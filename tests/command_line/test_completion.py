"""Shell completion: suggestions for each shell's protocol, without heavy imports or output from plugins."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Completed

from featuretap.command_line import command
from featuretap.command_line.completion import PROGRAM, VARIABLE

Run = Callable[..., Completed]
Complete = Callable[..., list[str]]
HEAVY = "{'torch', 'torchvision', 'timm', 'numpy', 'PIL'}"


@pytest.fixture
def complete(run: Run, monkeypatch: pytest.MonkeyPatch) -> Complete:
    """Complete the last word of a command line as the shell requests it."""

    def complete(*words: str, shell: str = "bash") -> list[str]:
        monkeypatch.setenv(VARIABLE, f"{shell}_complete")
        monkeypatch.setenv("COMP_WORDS", "\n".join((PROGRAM, *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)) if shell != "fish" else words[-1])
        ran = run()
        assert (ran.status, ran.err) == (0, "")
        return ran.out.split()

    return complete


def plain(values: str) -> list[str]:
    return [f"plain,{value}" for value in values.split()]


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("co", "completion convert"),
        ("completion ", "bash zsh fish"),
        ("plugins d", "doctor"),
        ("plugins doctor featuret", "featuretap"),
        (
            "show mobilenet_v3_large_m",
            "mobilenet_v3_large_minimalistic mobilenet_v3_large_minimalistic_tf",
        ),
        ("list mobilenet_v1_0", "mobilenet_v1_025 mobilenet_v1_050 mobilenet_v1_075"),
        ("list --heads f", "faster_rcnn fcos fpn"),
        ("show mobilenet_v2 --head f", "faster_rcnn fcos fpn"),
        ("save mobilenet_v1_02", "mobilenet_v1_025"),
        ("export mobilenet_v1_02", "mobilenet_v1_025"),
        ("export mobilenet_v1_025 x.onnx --head lr", "lraspp"),
        ("quantize mobilenet_v1_02", "mobilenet_v1_025"),
        ("bench mobilenet_v2 mobilenet_v1_02", "mobilenet_v1_025"),
        ("bench mobilenet_v2 --runtime o", "onnxruntime openvino"),
        ("bench mobilenet_v2 --runtime e", "eager"),
        ("bench mobilenet_v2 --runtime a", "auto aot"),
        ("bench mobilenet_v2 --runtime eager,onnx", "eager,onnxruntime"),
        ("bench mobilenet_v2 --against timm,", "timm,torchvision"),
        ("predict cat.jpg --model mobilenet_v1_02", "mobilenet_v1_025"),
        ("convert cat.pth cat.safetensors --layout t", "timm torchvision"),
        ("convert cat.pth cat.safetensors --layout p", "paddle"),
        ("train --backbone mobilenet_v1_02", "mobilenet_v1_025"),
        ("train --head lr", "lraspp"),
        ("train --freeze C", "C1 C2 C3 C4 C5"),
        ("train --optimizer a", "adamw"),
        ("train dig", "digits"),
        ("evaluate cifar", "cifar10 cifar100"),
        ("evaluate digits --part v", "val"),
    ],
)
def test_names_are_completed(complete: Complete, line: str, values: str) -> None:
    assert complete(*line.split(" ")) == plain(values)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("show mobilenet_v2 --taps C5", "C5 C5.bottleneck C5.first C5.depthwise"),
        ("show mobilenet_v2 --taps C1,C4.b", "C1,C4.bottleneck"),
        ("show mobilenet_v2 --taps C5.bottleneck,C5.b", ""),
        ("taps cat.jpg --taps C5.b", "C5.bottleneck"),
        ("taps cat.jpg --model mobilenet_v1 --taps C4.e", ""),
        ("show mobilenet_v1 --taps C4.e", ""),
        ("export mobilenet_v1 x.onnx --taps C4.e", ""),
        ("train --backbone mobilenet_v2 --taps C5.b", "C5.bottleneck"),
        ("extract photographs --model mobilenet_v2 --taps C5.b", "C5.bottleneck"),
        ("save mobilenet_v3_large x.safetensors --weights imagenet", "imagenet1k_v2 imagenet1k_v1"),
        ("predict cat.jpg --model mobilenet_v3_large --weights imagenet", "imagenet1k_v2 imagenet1k_v1"),
        ("train --backbone mobilenet_v3_large --weights imagenet", "imagenet1k_v2 imagenet1k_v1"),
        ("predict cat.jpg --weights ra_", "ra_in1k"),
    ],
)
def test_taps_and_tags_are_those_of_the_named_backbone(complete: Complete, line: str, values: str) -> None:
    assert complete(*line.split(" ")) == plain(values)


@pytest.mark.parametrize(
    "line",
    [
        "inspect lar",
        "predict ./c",
        "predict cat.jpg --weights ./c",
        "convert a.safetensors b",
        "export ./large.safetensors",
        "train --config r",
        "extract photo",
    ],
)
def test_files_are_completed_by_the_shell(complete: Complete, line: str) -> None:
    (one,) = complete(*line.split(" "))
    assert one.startswith("file,")


@pytest.mark.parametrize("line", ["train photo", "evaluate ./photo", "train --out runs"])
def test_folders_are_completed_by_the_shell(complete: Complete, line: str) -> None:
    (one,) = complete(*line.split(" "))
    assert one.startswith("dir,")


@pytest.mark.parametrize(
    "line",
    [
        "show nobody_s_net",
        "show timm/res",
        "show timm/resnet18 --taps C",
        "show nobody --taps C",
        "show mobilenet_v2 --option wid",
        "show mobilenet_v2 --option width=",
        "show mobilenet_v2 --unknown C",
        "nothing of ours",
        "new-plugin m",
        "plugins doctor nobody",
    ],
)
def test_unknown_words_complete_to_nothing(complete: Complete, line: str) -> None:
    assert complete(*line.split(" ")) == []


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (("show", "mobilenet_v2", "--taps", "=", "C5.b"), "C5.bottleneck"),
        (("show", "mobilenet_v2", "--head", "=", "f"), "faster_rcnn fcos fpn"),
        (("evaluate", "digits", "--part", "="), "val train all"),
        (("show", "featuretap", ":", "mobilenet_v2", "--taps", "C5.b"), "C5.bottleneck"),
        (("show", "mobilenet_v2", "--option", "width", "=", "0.5", "--taps", "C5.b"), "C5.bottleneck"),
        (("show", "mobilenet_v2", "--option", "width", "="), ""),
        (("show", "mobilenet_v2", "--option", "width", "=", ""), ""),
    ],
)
def test_words_that_bash_splits_at_equals_signs_and_colons_are_joined(
    complete: Complete, words: tuple[str, ...], values: str
) -> None:
    assert complete(*words) == plain(values)


def test_zsh_and_fish_get_answers_in_their_own_formats(complete: Complete) -> None:
    assert complete("show", "mobilenet_v1_02", shell="zsh") == ["plain", "mobilenet_v1_025", "_"]
    assert complete("show", "mobilenet_v1_02", shell="fish") == ["plain,mobilenet_v1_025"]


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("bash", "complete -o nosort -F _featuretap_completion featuretap"),
        ("zsh", "#compdef featuretap"),
        ("fish", 'complete --no-files --command featuretap --arguments "(_featuretap_completion)";'),
    ],
)
def test_completion_prints_a_script_for_each_shell(run: Run, shell: str, line: str) -> None:
    ran = run("completion", shell)
    assert (ran.status, ran.err) == (0, "")
    assert line in map(str.strip, ran.out.splitlines())
    assert f"_FEATURETAP_COMPLETE={shell}_complete" in ran.out


def test_an_unknown_shell_is_refused(run: Run) -> None:
    ran = run("completion", "cmd")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == "featuretap: Invalid value for '{bash|zsh|fish}': 'cmd' is not one of 'bash', 'zsh', 'fish'.\n"


def asked(line: str, code: str = "main()", **environment: str) -> subprocess.CompletedProcess[str]:
    """Complete a command line in a new process."""
    protocol = {VARIABLE: "bash_complete", "COMP_WORDS": f"{PROGRAM} {line}", "COMP_CWORD": str(len(line.split()))}
    return subprocess.run(
        [sys.executable, "-c", f"import sys\nfrom featuretap.command_line import main\n{code}"],
        capture_output=True,
        text=True,
        env={**os.environ, **protocol, **environment},
    )


@pytest.mark.parametrize(
    "line",
    [
        "show mobilenet_v1_02",
        "show timm/res",
        "show timm/resnet18 --taps C",
        "train dig",
        "bench mobilenet_v2 --runtime o",
    ],
)
def test_completing_imports_nothing_heavy(line: str) -> None:
    ran = asked(line, f"try: main()\nfinally: print('heavy', sorted({HEAVY} & set(sys.modules)))")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[-1] == "heavy []"


def test_a_broken_catalogue_completes_to_nothing(tmp_path: Path) -> None:
    config = tmp_path / "featuretap.toml"
    config.write_text("schema = 1\n[backbones.x]\nbaze = 1")
    broken = asked("show mobilenet", FEATURETAP_CONFIG=str(config))
    assert (broken.returncode, broken.stdout.strip(), broken.stderr) == (0, "", "")
    assert asked("sho", FEATURETAP_CONFIG=str(config)).stdout == "plain,show\n"


def test_output_and_failures_of_plugins_do_not_disturb_completion(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text("import sys\nprint('plain,noise')\nprint('noise', file=sys.stderr)\n1 / 0\n")
    information = tmp_path / "noisy-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[featuretap]\nnoisy = noisy\n")
    ran = asked("show mobilenet_v1_02", PYTHONPATH=str(tmp_path))
    assert (ran.stdout, ran.stderr) == ("plain,mobilenet_v1_025\n", "")
    assert asked("plugins doctor noi", PYTHONPATH=str(tmp_path)).stdout == "plain,noisy\n"
    strict = asked("show mobilenet_v1_02", PYTHONPATH=str(tmp_path), FEATURETAP_STRICT="1")
    assert (strict.returncode, strict.stdout.strip(), strict.stderr) == (0, "", "")


def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    program = tmp_path / PROGRAM
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m featuretap.command_line "$@"\n')
    program.chmod(0o755)
    code = """
        source <(featuretap completion bash)
        complete -p featuretap
        # Outside of a completion bash has no options of one.
        compopt() { echo compopt "$@"; }
        COMP_WORDS=(featuretap show mobilenet_v1_02) COMP_CWORD=2
        _featuretap_completion featuretap; echo "${COMPREPLY[*]}"
        COMP_WORDS=(featuretap show mobilenet_v2 --taps = C1,C5.b) COMP_CWORD=5 COMPREPLY=()
        _featuretap_completion featuretap; echo "${COMPREPLY[*]}"
        COMP_WORDS=(featuretap inspect lar) COMP_CWORD=2 COMPREPLY=()
        _featuretap_completion featuretap; echo "${#COMPREPLY[@]}"
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ran = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, env=environment)
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == [
        "complete -o nosort -F _featuretap_completion featuretap",
        "mobilenet_v1_025",
        "C1,C5.bottleneck",
        "compopt -o default",
        "0",
    ]


def test_click_knows_every_shell_that_the_command_takes() -> None:
    from click.shell_completion import get_completion_class

    (argument,) = command.commands["completion"].params
    assert all(get_completion_class(shell) for shell in argument.type.choices)

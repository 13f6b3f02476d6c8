"""Runs with the `quantize` setting start from weights, train with rounded values, and export an INT8 file."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from support import Completed
from support.heads import build_head
from support.training_runs import coloured_folder, small_run

from featuretap import registry
from featuretap.registry.errors import FeaturetapError
from featuretap.workflows.training import run as training
from featuretap.workflows.training.configuration import make_configuration, resolve_defaults
from featuretap.workflows.training.quantized_file import check_quantizable
from featuretap.workflows.training.run import evaluate, train
from featuretap.workflows.training.run_folder import read_run

Run = Callable[..., Completed]

FINE_TUNED: dict[str, Any] = {"backbone": None, "options": {}, "quantize": True, "size": None, "batch_size": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def weights(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of weights from a float32 run."""
    out = tmp_path_factory.mktemp("float") / "run"
    return str(train(small_run(data, out, epochs=1), log=lambda line: None).folder / "best.safetensors")


def test_a_run_ends_with_an_int8_file_and_its_metrics(run: Run, data: Path, weights: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = "--quantize", "--weights", weights, "--epochs", 2, "--batch-size", 8, "--workers", 0
    ran = run("train", data, *settings, "--out", folder)
    assert ran.status == 0, ran.err
    metrics = json.loads((folder / "quantization.json").read_text())
    assert list(metrics) == ["float32", "fake quantization", "int8"]
    in_float, fake, integers = (each["accuracy"] for each in metrics.values())
    assert (
        f"accuracy of the best epoch: {in_float:.4f} in float32, {fake:.4f} with fake quantization, {integers:.4f} in "
        f"int8 ({folder / 'best.onnx'})"
    ) in ran.out.splitlines()
    assert metrics["fake quantization"] == pytest.approx(json.loads((folder / "metrics.json").read_text()))
    silent: dict[str, Any] = {"log": lambda line: None}
    plain, _, _ = evaluate(registry.load(folder / "best.safetensors"), str(data), **silent)
    assert metrics["float32"] == pytest.approx(plain.scores)
    file, _, _ = evaluate(registry.compile(folder / "best.onnx"), str(data), **silent)
    assert metrics["int8"] == pytest.approx(file.scores)
    assert metrics["int8"]["loss"] != metrics["float32"]["loss"] != metrics["fake quantization"]["loss"]
    operators = {node.op_type for node in onnx.load(folder / "best.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators


def test_a_resumed_run_goes_on_with_its_ranges(
    data: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "write_quantized", lambda *arguments: None)
    settings = {**FINE_TUNED, "weights": weights, "epochs": 3, "ema": 0.5}
    whole = train(small_run(data, tmp_path / "whole", **settings), log=lambda line: None)

    def interrupt(line: str) -> None:
        if line.startswith("epoch 2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_run(data, tmp_path / "broken", **settings), log=interrupt)
    broken = train(read_run(tmp_path / "broken", {}), resume=True, log=lambda line: None)
    assert broken.metrics.scores == whole.metrics.scores
    assert (broken.folder / "last.safetensors").read_bytes() == (whole.folder / "last.safetensors").read_bytes()
    assert tomllib.loads((broken.folder / "configuration.toml").read_text())["quantize"] is True


@pytest.mark.parametrize(
    ("given", "decided"),
    [
        ({}, {"epochs": 5, "lr": 1e-4, "warmup_epochs": 1.0}),
        ({"optimizer": "sgd", "epochs": 2}, {"epochs": 2, "lr": 5e-3, "warmup_epochs": 0.5}),
        ({"lr": 0.5}, {"lr": 0.5}),
    ],
    ids=["usual", "SGD and epochs", "learning rate"],
)
def test_fine_tuning_is_short_and_slow(weights: str, given: dict[str, Any], decided: dict[str, Any]) -> None:
    made = make_configuration({"data": "digits", "weights": weights, "quantize": True, **given})
    resolved = resolve_defaults(made, "classification", mirrors=False)
    assert {name: getattr(resolved, name) for name in decided} == pytest.approx(decided)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("digits", "--backbone", "mobilenet_v2"),
            "quantize fine-tunes a trained model, and no weights are set; set its weights, such as --weights "
            "best.safetensors",
        ),
        (
            ("digits", "--backbone", "mobilenet_v2", "--weights", "x", "--norm-momentum", "0.1"),
            "norm_momentum=0.1 has no effect with quantize, which freezes batch-norm statistics; leave it out",
        ),
        (
            ("--data", "a=digits", "--data", "b=digits", "--backbone", "mobilenet_v2", "--weights", "x"),
            "quantize supports models with one head only; fine-tune each head in its own run",
        ),
    ],
    ids=["no weights", "norms", "several heads"],
)
def test_what_a_run_cannot_do_is_refused_in_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    ran = run("train", *arguments, "--quantize")
    assert (ran.status, ran.out, ran.err) == (2, "", f"featuretap: {message}\n")


@pytest.mark.parametrize(
    ("head", "processes", "message"),
    [
        ("classification", 2, "quantize supports a single process, not 2; start one process"),
        (
            "retinanet",
            1,
            "no runtime supports the detector 'retinanet'; write it as an ONNX file for one image size with "
            "registry.export",
        ),
    ],
    ids=["processes", "detector"],
)
def test_what_could_not_be_written_at_the_end_is_refused_at_the_start(head: str, processes: int, message: str) -> None:
    with pytest.raises(FeaturetapError) as caught:
        check_quantizable(build_head(registry.default, "mobilenet_v2", head, width=0.25), processes)
    assert str(caught.value) == message

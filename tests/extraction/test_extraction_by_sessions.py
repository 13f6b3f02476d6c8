"""Features extracted by a session without PyTorch equal the module's, and either can continue the other's folder."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from support.extraction import Run, bytes_in, names_in
from support.full_disk import full_disk
from support.oracles import with_statistics
from support.package import heavy_modules_after

from featuretap import registry
from featuretap.registry.errors import MissingExtraError, WeightsError
from featuretap.support import extras
from featuretap.support.threads import map_ahead
from featuretap.workflows.extraction.computing import Extractor
from featuretap.workflows.extraction.opening import open_extractor
from featuretap.workflows.extraction.reading import open_features
from featuretap.workflows.inference import opening


def saved(path: Path, name: str, layout: str = "featuretap", **options: Any) -> Path:
    """Save a model with realistic statistics."""
    model = registry.build(name, **options)
    channels = options.get("in_channels", 3)
    images = torch.randn(4, channels, 64, 64)
    return registry.save(with_statistics(model, lambda model: model(images), nearly_dead=False), path, layout)


def runs_a_session(extractor: Extractor) -> bool:
    module: str = extractor.compute.func.__module__  # type: ignore[attr-defined]
    return module.endswith(".sessions")


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate an environment without PyTorch."""
    monkeypatch.setattr(opening, "find_spec", lambda name: None)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large"])
@pytest.mark.parametrize("arguments", [("--size", "97x161"), ("--pool",), ("--pool", "--size", "65x33")])
def test_features_of_a_session_are_those_of_the_module(
    run: Run, folder: Path, tmp_path: Path, official_weights: Path, name: str, arguments: tuple[str, ...]
) -> None:
    file = tmp_path / "a.safetensors"
    if name == "mobilenet_v2":
        registry.save(registry.build(name, pretrained=official_weights), file)
    else:
        saved(file, name, width=0.5, features_only=True)
    asked = ("extract", folder, "--weights", file, "--taps", "C5,C2,C3.first", "--batch-size", 3, *arguments)
    assert run(*asked, "--out", tmp_path / "session").status == 0
    assert run(*asked, "--out", tmp_path / "module", "--torch").status == 0
    ours, theirs = (open_features(tmp_path / way) for way in ("session", "module"))
    assert ours.manifest == {**theirs.manifest, "shards": ours.manifest["shards"]}
    assert ours.names == theirs.names == names_in(folder)
    for tap in theirs.taps:
        values, expected = ours.tap(tap), theirs.tap(tap)
        assert values.shape == expected.shape
        assert np.abs(values - expected).max() < 1e-4 * np.abs(expected).max()


FILES: dict[str, Callable[[Path], Path]] = {
    "backbone": lambda folder: saved(folder / "a.safetensors", "mobilenet_v3_small", features_only=True),
    "classifier": lambda folder: saved(folder / "a.safetensors", "mobilenet_v2", width=0.5, num_classes=3),
    "timm": lambda folder: saved(folder / "a.safetensors", "mobilenet_v3_large", "timm", num_classes=3),
    "torchvision": lambda folder: saved(folder / "a.safetensors", "mobilenet_v2", "torchvision", num_classes=3),
    "reduced": lambda folder: saved(
        folder / "a.safetensors", "mobilenet_v3_small", features_only=True, reduced_tail=True, output_stride=16
    ),
    "grey": lambda folder: saved(folder / "a.safetensors", "mobilenet_v1", width=0.25, in_channels=1),
    "half": lambda folder: _rewritten(
        folder, lambda name, tensor: tensor.half() if tensor.is_floating_point() else tensor
    ),
    "bfloat16": lambda folder: _rewritten(
        folder, lambda name, tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor
    ),
    "without-counters": lambda folder: _rewritten(
        folder, lambda name, tensor: None if name.endswith("num_batches_tracked") else tensor
    ),
}


def _rewritten(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Path:
    path = saved(folder / "a.safetensors", "mobilenet_v2", "timm", width=0.5)
    tensors = {name: change(name, tensor) for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return path


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("taps", [("C5",), ("C3.depthwise", "C2")])
def test_both_ways_identify_weights_by_the_same_digest(tmp_path: Path, kind: str, taps: tuple[str, ...]) -> None:
    file = FILES[kind](tmp_path)
    # Tensors alone do not identify these files, so they need a name.
    name = "mobilenet_v2_050" if kind in ("half", "bfloat16", "without-counters") else None
    session, module = (open_extractor(name, str(file), taps, use_torch=use_torch) for use_torch in (False, True))
    assert (runs_a_session(session), runs_a_session(module)) == (True, False)
    assert session.weights_sha256 == module.weights_sha256
    assert dict(session.taps) == dict(module.taps)
    assert list(session.taps) == list(module.taps)
    assert session.preparation == module.preparation
    assert session.description == module.description


def test_a_tail_that_is_pruned_has_the_same_digest_and_is_warned_of_once(
    tmp_path: Path,
    configured: Callable[[str], registry.Registry],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = configured('[backbones.pruned]\nbase = "mobilenet_v3_small"\noptions = { reduced_tail = true }')
    monkeypatch.setattr(registry, "default", own)
    monkeypatch.setattr(registry, "build", own.build)
    file = saved(tmp_path / "a.safetensors", "mobilenet_v3_small")
    session = open_extractor("pruned", str(file), ("C5",))
    assert runs_a_session(session)
    assert len(caplog.records) == 1
    module = open_extractor("pruned", str(file), ("C5",), use_torch=True)
    assert session.weights_sha256 == module.weights_sha256


def test_other_weights_have_another_digest(tmp_path: Path) -> None:
    first, second = (saved(tmp_path / f"{name}.safetensors", "mobilenet_v1", width=0.25) for name in "ab")
    assert open_extractor(None, str(first), ("C5",)).weights_sha256 != (
        open_extractor(None, str(second), ("C5",)).weights_sha256
    )


@pytest.mark.parametrize("ways", [((), ("--torch",)), (("--torch",), ())])
def test_either_way_continues_a_run_of_the_other(
    extract: Run, folder: Path, tmp_path: Path, ways: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    how = (folder, "--shard-size", 6, "--out", tmp_path / "out")
    assert extract(*how, *ways[0]).status == 0
    (tmp_path / "out" / "features-00001-of-00002.safetensors").unlink()
    before = bytes_in(tmp_path / "out")
    ran = extract(*how, *ways[1])
    assert ran.status == 0
    assert ran.out.startswith(f"{tmp_path / 'out'}: 11 images (6 from an earlier run), 0 unreadable, ")
    assert before.items() <= bytes_in(tmp_path / "out").items()


def test_neither_a_second_run_nor_another_number_of_threads_changes_a_byte(
    extract: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for threads in ("1", "1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        assert extract(folder, "--taps", "C2,C5", "--batch-size", 2, "--out", out).status == 0
    assert bytes_in(tmp_path / "out0") == bytes_in(tmp_path / "out1") == bytes_in(tmp_path / "out2")


def extract_in_a_process(*arguments: object) -> list[str]:
    """Return the heavy modules imported by `featuretap extract` in a new process."""
    line = [*map(str, ("extract", *arguments))]
    run = f"try: main({line})\nexcept SystemExit as ended: assert not ended.code"
    return heavy_modules_after(f"from featuretap.command_line import main\n{run}")


def test_extraction_by_a_session_imports_no_pytorch(folder: Path, weights: Path, tmp_path: Path) -> None:
    asked = (folder, "--weights", weights, "--pool", "--out", tmp_path / "out")
    assert extract_in_a_process(*asked) == ["PIL", "numpy"]
    assert open_features(tmp_path / "out").tap("C5").shape == (11, 144)


def test_the_proof_that_pytorch_is_not_imported_can_fail(folder: Path, weights: Path, tmp_path: Path) -> None:
    asked = (folder, "--weights", weights, "--pool", "--out", tmp_path / "out", "--torch")
    assert "torch" in extract_in_a_process(*asked)


def test_pytorch_computes_where_a_session_cannot_or_is_not_wanted(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, official_weights: Path
) -> None:
    asked = (None, str(weights), ("C5",))
    assert runs_a_session(open_extractor(*asked))
    assert not runs_a_session(open_extractor(*asked, use_torch=True))
    assert not runs_a_session(open_extractor("mobilenet_v1_025", "none", ("C5",)))
    assert not runs_a_session(open_extractor("mobilenet_v2", str(official_weights), ("C5",)))
    with monkeypatch.context() as patch:
        patch.setattr(opening, "GPU", tmp_path)
        assert not runs_a_session(open_extractor(*asked))
    with monkeypatch.context() as patch:
        patch.setattr(extras, "find_spec", lambda name: None if name == "onnxruntime" else object())
        assert not runs_a_session(open_extractor(*asked))


@pytest.mark.usefixtures("without_torch")
def test_without_pytorch_the_error_is_that_of_the_session(weights: Path, official_weights: Path) -> None:
    assert runs_a_session(open_extractor(None, str(weights), ("C5",)))
    with pytest.raises(WeightsError, match=r"is a \.pth file, which can only be read with PyTorch"):
        open_extractor("mobilenet_v2", str(official_weights), ("C5",))
    with pytest.raises(MissingExtraError) as error:
        open_extractor(None, str(weights), ("C5",), use_torch=True)
    assert str(error.value) == "--torch needs PyTorch, which is not installed; omit it, or install torch"


def test_no_thread_goes_on_after_an_error(extract: Run, folder: Path, tmp_path: Path) -> None:
    with full_disk(2_000):
        ran = extract(folder, "--shard-size", 2, "--batch-size", 1, "--taps", "C1", "--out", tmp_path / "out")
    assert ran.status == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("featuretap-ahead")]


def test_threads_work_ahead_by_two_items_each_and_keep_the_order() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            asked.append(item)
            yield item

    results = map_ahead(lambda item: item * item, items(), 2)
    assert asked == []
    assert next(results) == 0
    assert asked == [0, 1, 2, 3]
    assert list(results) == [item * item for item in range(1, 20)]


def test_an_error_in_a_thread_is_raised_in_its_turn() -> None:
    results = map_ahead(lambda item: 6 // item, [2, 1, 0, 3], 3)
    assert [next(results), next(results)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closing_waits_for_what_has_begun_and_begins_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, has_begun, goes_on = set(), threading.Semaphore(0), threading.Event()
    shutdown = ThreadPoolExecutor.shutdown

    def shutdown_while_threads_wait(pool: ThreadPoolExecutor, **settings: Any) -> None:
        shutdown(pool, **{**settings, "wait": False})
        goes_on.set()
        shutdown(pool)

    def wait(item: int) -> int:
        begun.add(item)
        has_begun.release()
        # Only the first item finishes immediately; the others wait.
        assert not item or goes_on.wait(60)
        return item

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown_while_threads_wait)
    results = map_ahead(wait, range(100), 2)
    assert next(results) == 0
    for _ in range(3):
        assert has_begun.acquire(timeout=60)
    results.close()
    assert begun == {0, 1, 2}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("featuretap-ahead")]

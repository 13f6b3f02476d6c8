"""Latency of ONNX Runtime by threads, layouts and session options."""

from collections.abc import Callable, Iterator
from functools import partial

import onnxruntime
import torch

from benchmarks.networks import NAME
from benchmarks.results import limit, milliseconds, section, timed
from featuretap import registry
from featuretap.runtimes.exportable import prepare_model
from featuretap.runtimes.model_graphs import make_graph
from featuretap.runtimes.onnx_runtime import onnx_session
from featuretap.specs.graph import IMAGE
from featuretap.support.timing import PAUSE

__all__ = ["session_options"]

ROUNDS = 61


def session_options() -> Iterator[str]:
    """Yield a table of sessions with different options on the same weights."""
    model = registry.build(NAME, features_only=True)
    content = make_graph(prepare_model(model)).SerializeToString()
    fixed = make_graph(prepare_model(model, size=(224, 224), batch=1)).SerializeToString()
    threads = torch.get_num_threads()
    sessions = {
        "options of `registry.compile`": onnx_session(content, threads),
        "1 thread": onnx_session(content, 1),
        "threads keep spinning after a call": _session(content, {"session.force_spinning_stop": "0"}),
        "threads never spin": _session(content, {"session.intra_op.allow_spinning": "0"}),
        "fixed image and batch size": onnx_session(fixed, threads),
        "NCHW layout in all layers": _session(content, {}, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
    }
    array = torch.randn(1, 3, 224, 224).numpy()
    calls: dict[str, Callable[[], object]] = {
        name: partial(session.run, None, {IMAGE: array}) for name, session in sessions.items()
    }
    timings = timed(calls, ROUNDS, warm_up=5, pause=PAUSE)
    least = registry.spec(NAME, features_only=True).macs(224, 224) / limit()
    shares = {name: f"{least / timing.median:.0%}" for name, timing in timings.items()}
    yield section(
        "Options of ONNX Runtime, 1 × 3 × 224 × 224",
        f"C1 to C5 of {NAME}, `session.run` only. {ROUNDS} rounds.",
        milliseconds(timings, {"of the limit": shares}),
    )


def _session(
    content: bytes,
    entries: dict[str, str],
    level: onnxruntime.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = level
    for key, value in {"session.force_spinning_stop": "1", **entries}.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

"""The process that examines an installation for `installation`: imports, plugins, folders and runtimes.

It runs apart from the command because importing a broken package can end Python. It reports every step before taking
it, so that a step that ends the process is known.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from featuretap.registry import Registry
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.import_strings import load
from featuretap.support.text import error_line, one_line
from featuretap.support.timing import PAUSE, time_interleaved
from featuretap.workflows.measuring.installation import BACKBONE

SIZE = (224, 224)
"""Height and width of the image, in pixels."""

SECONDS = 0.5
"""Time for measuring one runtime."""

FEWEST_ROUNDS, MOST_ROUNDS = 3, 15

Step = tuple[str, Callable[[], Any]]


def run(request: Mapping[str, Any]) -> None:
    """Take the steps that remain, write a JSON line before and after each, and end the process.

    Args:
        request: `report`, the path of the file to write; `packages`, module names to import; `measure`, whether to
            measure runtimes; `discover`, whether to load installed plugins; `done`, names of the steps to skip.
    """
    warnings.simplefilter("ignore")
    logging.disable()

    def report(**found: Any) -> None:
        with open(request["report"], "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")

    for name, take in _steps(request):
        if name in request["done"]:
            continue
        report(step=name)
        start = time.perf_counter()
        try:
            report(step=name, result=take(), seconds=time.perf_counter() - start)
        except BaseException as error:
            missing = isinstance(error, ModuleNotFoundError) and f"import {error.name}" == name
            report(step=name, error=one_line(error_line(error)), missing=missing)
    report(complete=True)
    # Skip what broken packages do at exit.
    os._exit(0)


def _steps(request: Mapping[str, Any]) -> Iterator[Step]:
    for module in request["packages"]:
        yield f"import {module}", partial(_import_package, module)
    registry = Registry() if request["discover"] else Registry(discover=False)
    yield "threads", _default_threads
    yield "plugins", partial(_plugins, registry)
    try:
        runtimes = registry.runtimes
    except Exception:
        # The user's catalogue cannot be read, as the step "plugins" has reported.
        registry = Registry(discover=False)
        runtimes = registry.runtimes
    yield "weights", partial(_weights, registry)
    yield "folders", _folders
    if request["measure"]:
        for name in ("eager", *(runtime.name for runtime in runtimes)):
            yield f"measure {name}", partial(_measure, registry, name)


def _import_package(module: str) -> dict[str, Any]:
    imported = import_module(module)
    facts: dict[str, Any] = {"version": str(getattr(imported, "__version__", ""))}
    if module == "torch":
        count = imported.cuda.device_count() if imported.cuda.is_available() else 0
        facts["threads"] = imported.get_num_threads()
        facts["gpus"] = [imported.cuda.get_device_name(number) for number in range(count)]
        facts["cuda"] = imported.version.cuda
    return facts


def _default_threads() -> int:
    from featuretap.runtimes.sessions import default_threads

    return default_threads()


def _plugins(registry: Registry) -> dict[str, Any]:
    return {
        "plugins": [
            {
                "distribution": plugin.distribution,
                "version": plugin.version or None,
                "plugin": plugin.name,
                "built_in": plugin.built_in,
                "status": plugin.status,
                "error": None if plugin.error is None else one_line(error_line(plugin.error)),
            }
            for plugin in registry.plugins
        ],
        "problems": [
            problem for problem in registry.problems if problem not in {plugin.failure for plugin in registry.plugins}
        ],
    }


def _weights(registry: Registry) -> list[dict[str, str]]:
    from featuretap.weights.downloads import find_local

    found = ((entry.name, find_local(entry)) for entry in registry.published_weights)
    return [{"name": name, "path": str(path)} for name, path in found if path is not None]


def _folders() -> list[dict[str, str]]:
    from platformdirs import user_cache_path, user_config_path

    from featuretap.weights.downloads import torch_hub_path

    configuration = os.environ.get("FEATURETAP_CONFIG") or (
        user_config_path("featuretap", appauthor=False) / "featuretap.toml"
    )
    paths: dict[str, str | os.PathLike[str]] = {
        "configuration": configuration,
        "torch.hub cache": torch_hub_path("file").parent,
        "data set cache": user_cache_path("featuretap", appauthor=False) / "datasets",
    }
    if _is_installed("huggingface_hub"):
        paths["Hugging Face cache"] = import_module("huggingface_hub.constants").HF_HUB_CACHE
    return [{"name": name, "path": str(Path(path).absolute())} for name, path in paths.items()]


def _is_installed(module: str) -> bool:
    return module in sys.modules or find_spec(module) is not None


def _measure(registry: Registry, name: str) -> dict[str, Any]:
    """Return the median seconds of a call, or why the runtime is not measured."""
    runtime = None if name == "eager" else registry.runtime(name)
    absent = [module for module in runtime.modules if not _is_installed(module)] if runtime else []
    if absent:
        return {"skipped": "not installed", "requires": runtime.requires if runtime else ""}
    if runtime is not None and not runtime.quick:
        return {"skipped": "not measured, because it compiles slowly"}
    if not (runtime and runtime.session) and not _is_installed("torch"):
        return {"skipped": "not measured, because PyTorch is not installed"}
    call = _make_call(registry, name)
    once = time_interleaved({name: call}, rounds=1, warm_up=2)[name]
    rounds = min(max(int(SECONDS / (PAUSE + 2 * once.median)), FEWEST_ROUNDS), MOST_ROUNDS)
    return {"median": time_interleaved({name: call}, rounds, warm_up=1, pause=PAUSE)[name].median}


def _make_call(registry: Registry, name: str) -> Callable[[], object]:
    """Return a function that computes the maps of one image, without PyTorch if the runtime allows it."""
    shape = (1, 3, *SIZE)
    runtime = None if name == "eager" else registry.runtime(name)
    if runtime is not None and runtime.session:
        import numpy as np

        from featuretap.runtimes.sessions import default_threads

        opened = load(runtime.session)(_random_graph(registry), threads=default_threads())
        images = np.random.default_rng(0).standard_normal(shape, np.float32)
        return partial(opened.run, images)
    import torch

    torch.set_grad_enabled(False)
    model: Any = registry.build(BACKBONE, features_only=True).eval()
    if runtime is not None:
        model = registry.compile(model, name)
    return partial(model, torch.randn(shape))


def _random_graph(registry: Registry) -> bytes:
    """Return the backbone with random weights as an ONNX graph."""
    import numpy as np

    from featuretap.runtimes.graphs import write_graph
    from featuretap.weights.expected_tensors import backbone_tensors

    spec = registry.backbone(BACKBONE)
    random = np.random.default_rng(0)
    tensors = {
        name: np.ones(shape, np.float32) if ".norm." in name else 0.1 * random.standard_normal(shape, np.float32)
        for name, shape in backbone_tensors(spec.blocks).items()
    }
    return write_graph(spec, tensors, {"backbone": 1e-5}, Preprocessing()).SerializeToString()

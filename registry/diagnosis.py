"""What is wrong with a plugin that loads: the conformance kit's checks on everything it provides."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from featuretap.catalogue.plugin_loading import Plugin
from featuretap.registry import conformance, head_conformance
from featuretap.registry.registry import Registry
from featuretap.support.errors import FeaturetapError, SpecError
from featuretap.support.text import error_line

BACKBONE = "mobilenet_v3_small"
"""The backbone for heads that can read it; others get one of their own plugin."""
PATIENCE = 60
"""Seconds after which a plugin is taken to hang."""


def find_problems(plugin: Plugin, registry: Registry) -> Iterator[str]:
    """Yield a line for each problem of a plugin."""
    known = set()
    for check in _checks(plugin, registry):
        try:
            check()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # Whatever a plugin's model raises is a problem, SystemExit too. What cannot be built fails every check.
            problem = error_line(error)
            if problem not in known:
                yield problem
            known.add(problem)
    for problem in registry.problems:
        if f"'{plugin.distribution}'" in problem or f"'{plugin.distribution}:" in problem:
            yield problem


def _checks(plugin: Plugin, registry: Registry) -> Iterator[Callable[[], None]]:
    yield partial(check_torch_free, plugin.value)
    backbones = [f"{plugin.distribution}:{spec.name}" for spec in plugin.backbones]
    for name in backbones:
        yield partial(conformance.check_shapes, name, registry, conformance.SIZES[:1])
        yield partial(conformance.check_counts, name, registry, conformance.SIZES[0])
        yield partial(conformance.check_keys, name, registry)
    for head in plugin.heads:
        yield partial(_check_head, f"{plugin.distribution}:{head.name}", backbones, registry)


def _check_head(head: str, backbones: list[str], registry: Registry) -> None:
    backbone = BACKBONE
    for candidate in (BACKBONE, *backbones):
        with suppress(FeaturetapError):
            registry.spec(candidate, head=head)
            backbone = candidate
            break
    trial = head_conformance.build_head_trial(head, backbone, registry, conformance.SIZES[0])
    head_conformance.check_head_outputs(trial)
    head_conformance.check_head_counts(trial)


def check_torch_free(value: str) -> None:
    """Check in a new process that neither importing a plugin, "package.module", nor answering its hooks imports torch.

    Raises:
        SpecError: it does.
    """
    code = (
        "import sys\n"
        # What can be imported here can be imported there, such as a package that pytest put on the path.
        f"sys.path[:] = {sys.path!r}\n"
        "from importlib.metadata import EntryPoint\n"
        "from featuretap.registry import Registry\n"
        f"Registry([EntryPoint('plugin', {value!r}, 'featuretap').load()], discover=False).plugins\n"
        "print('torch' in sys.modules)"
    )
    try:
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        raise SpecError(f"{value!r} takes more than {PATIENCE} seconds to be imported and asked") from error
    if ran.returncode or not ran.stdout.endswith(("True\n", "False\n")):
        reason = (ran.stderr.splitlines() or [f"it ends Python with status {ran.returncode}"])[-1]
        raise SpecError(f"{value!r} cannot be imported by itself ({reason})")
    if ran.stdout.endswith("True\n"):
        raise SpecError(
            f"{value!r} imports torch when it is imported or answers its hooks, so that every start waits for it; "
            "name heavy code by an import string, 'package.module:function'"
        )

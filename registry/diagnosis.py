"""Conformance checks of everything that a loaded plugin provides, for `featuretap plugins doctor`."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from featuretap.catalogue.plugin_loading import Plugin
from featuretap.registry import conformance, head_conformance
from featuretap.registry.examination import IMPORTS_TORCH
from featuretap.registry.registry import Registry
from featuretap.support.errors import FeaturetapError, SpecError
from featuretap.support.text import error_line

BACKBONE = "mobilenet_v3_small"
"""The backbone for heads that fit it. Other heads are checked on a backbone of their plugin."""
PATIENCE = 60
"""Seconds after which a plugin counts as hanging."""


def find_problems(plugin: Plugin, registry: Registry, report: Callable[[str], None]) -> Iterator[str]:
    """Check the backbones and heads of a plugin.

    Args:
        plugin: a loaded plugin.
        registry: the registry that has the plugin.
        report: called with the name of each backbone and head before it is built.

    Yields:
        One line per problem.
    """
    reported = set()
    for name, check in _checks(plugin, registry):
        report(name)
        try:
            check()
        except BaseException as error:
            # KeyboardInterrupt and SystemExit from a plugin's model are problems too. A model that cannot be built
            # fails every check with the same message.
            problem = error_line(error)
            if problem not in reported:
                yield problem
            reported.add(problem)


def _checks(plugin: Plugin, registry: Registry) -> Iterator[tuple[str, Callable[[], None]]]:
    backbones = [f"{plugin.distribution}:{spec.name}" for spec in plugin.backbones]
    for name in backbones:
        yield name, partial(conformance.check_shapes, name, registry, conformance.SIZES[:1])
        yield name, partial(conformance.check_counts, name, registry, conformance.SIZES[0])
        yield name, partial(conformance.check_keys, name, registry)
    for head in plugin.heads:
        name = f"{plugin.distribution}:{head.name}"
        yield name, partial(_check_head, name, backbones, registry)


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
    """Check in a new process that a plugin does not import PyTorch on import or in its hooks.

    Args:
        value: import string of the plugin, such as "package.module".

    Raises:
        SpecError: the plugin imports PyTorch, cannot be imported, or takes too long.
    """
    code = (
        "import sys\n"
        # The plugin may be on a path that pytest added.
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
        raise SpecError(f"{value!r} takes more than {PATIENCE} seconds to import and to answer its hooks") from error
    if ran.returncode or not ran.stdout.endswith(("True\n", "False\n")):
        reason = (ran.stderr.splitlines() or [f"Python exits with status {ran.returncode}"])[-1]
        raise SpecError(f"{value!r} cannot be imported in a new process ({reason})")
    if ran.stdout.endswith("True\n"):
        raise SpecError(IMPORTS_TORCH.format(value))

"""The conformance kit: a plugin's whole test file is one class statement.

    from featuretap.registry.testing import BackboneConformance

    class TestTinynet(BackboneConformance):
        plugin = "tinynet.plugin"

Every backbone, or head, that the plugin provides is checked against its declaration by real forward passes. Needs
pytest, which then finds one test a promise and a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar

import pytest

from featuretap.registry import conformance, head_conformance
from featuretap.registry.errors import PluginError
from featuretap.registry.plugin_loading import Plugin
from featuretap.registry.registry import Registry

__all__ = ["BackboneConformance", "HeadConformance", "isolated_registry"]

TABLE_VARIATIONS = ({"width": 0.5}, {"output_stride": 16}, {"output_stride": 8}, {"in_channels": 1})
"""Options that every table of rows takes."""


@pytest.fixture
def isolated_registry() -> Registry:
    """Give a registry in which nothing is discovered: featuretap's own plugin, no others, and no user's catalogue."""
    return Registry(discover=False)


def _loaded(plugin: str | ModuleType) -> tuple[Registry, Plugin]:
    module = import_module(plugin) if isinstance(plugin, str) else plugin
    registry = Registry([module], discover=False)
    loaded = registry.plugins[-1]
    if loaded.error:
        raise PluginError(loaded.failure) from loaded.error
    return registry, loaded


class BackboneConformance:
    """Tests of every backbone that a plugin provides.

    Attributes:
        plugin: the plugin's module, or the import string of it; what the entry point names.
        backbones: names to test; empty for all that the plugin declares. Names in an open namespace have to be given.
        sizes: heights and widths in pixels of the images; name others where the network takes some sizes only.
        variations: options under which shapes and counts are checked besides the defaults; for tables of rows there
            are some already.
        scripts: whether `torch.jit.script` has to work.
    """

    plugin: ClassVar[str | ModuleType]
    backbones: ClassVar[Sequence[str]] = ()
    sizes: ClassVar[Sequence[tuple[int, int]]] = conformance.SIZES
    variations: ClassVar[Sequence[Mapping[str, Any]]] = ()
    scripts: ClassVar[bool] = True

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make a test of each promise and backbone."""
        if "backbone" in metafunc.fixturenames:
            names = self.backbones or [spec.name for spec in _loaded(self.plugin)[1].backbones]
            metafunc.parametrize("backbone", names)

    @pytest.fixture
    def registry(self) -> Registry:
        """Give a registry that has the plugin and ours, and nothing else."""
        return _loaded(self.plugin)[0]

    def test_maps_have_the_declared_shapes(self, backbone: str, registry: Registry) -> None:
        """Every tap, in any order, at odd sizes."""
        conformance.check_shapes(backbone, registry, self.sizes)

    def test_counts_are_the_declared_ones(self, backbone: str, registry: Registry) -> None:
        """Parameters and multiply-adds."""
        conformance.check_counts(backbone, registry, self.sizes[0])

    def test_options_are_checked_and_kept(self, backbone: str, registry: Registry) -> None:
        """Misspelled ones are refused; shapes and counts follow from the others."""
        spec = registry.catalogued(backbone)
        variations = [*self.variations, *(TABLE_VARIATIONS if spec.stages else ())]
        conformance.check_options(backbone, registry, self.sizes[0], variations)

    def test_a_map_is_the_same_alone_and_among_others(self, backbone: str, registry: Registry) -> None:
        """No layer writes into a map that was returned."""
        conformance.check_each_map_alone(backbone, registry, self.sizes[0])

    def test_evaluation_depends_on_the_image_alone(self, backbone: str, registry: Registry) -> None:
        """Neither on chance nor on the batch."""
        conformance.check_determinism(backbone, registry, self.sizes[0])

    def test_everything_learns(self, backbone: str, registry: Registry) -> None:
        """Every parameter and the image get gradients."""
        conformance.check_gradients(backbone, registry, self.sizes[0])

    def test_what_is_frozen_stays(self, backbone: str, registry: Registry) -> None:
        """Parameters and statistics of the first level, in training."""
        conformance.check_freezing(backbone, registry, self.sizes[0])

    def test_a_bare_backbone_has_a_subset_of_the_models_tensors(self, backbone: str, registry: Registry) -> None:
        """Files of whole models can be loaded into parts."""
        conformance.check_keys(backbone, registry)

    def test_files_and_copies_are_the_same(self, backbone: str, registry: Registry, tmp_path: Path) -> None:
        """Saved as safetensors and loaded, and copied."""
        conformance.check_copies(backbone, registry, tmp_path, self.sizes[0])

    def test_it_scripts(self, backbone: str, registry: Registry) -> None:
        """`torch.jit.script`, where `scripts`."""
        if self.scripts:
            conformance.check_runs_as(conformance.scripted, backbone, registry, self.sizes[0])

    def test_it_exports(self, backbone: str, registry: Registry) -> None:
        """`torch.export.export`."""
        conformance.check_runs_as(conformance.exported, backbone, registry, self.sizes[0])

    def test_declaring_needs_no_torch(self) -> None:
        """Importing the plugin and asking its hooks."""
        conformance.check_torch_free(_module_name(self.plugin))


class HeadConformance:
    """Tests of every head that a plugin provides, on some backbones.

    Attributes:
        plugin: the plugin's module, or the import string of it; what the entry point names.
        heads: names to test; empty for all that the plugin declares.
        backbones: names of backbones to test them on.
        sizes: heights and widths in pixels of the images.
        options: head → options to test it with, such as small images of a detector.
    """

    plugin: ClassVar[str | ModuleType]
    heads: ClassVar[Sequence[str]] = ()
    backbones: ClassVar[Sequence[str]] = ("mobilenet_v3_small",)
    sizes: ClassVar[Sequence[tuple[int, int]]] = ((97, 161), (128, 96))
    options: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make a test of each promise, head and backbone."""
        if "head" in metafunc.fixturenames:
            names = self.heads or [head.name for head in _loaded(self.plugin)[1].heads]
            metafunc.parametrize("head", names)
            metafunc.parametrize("backbone", self.backbones)

    @pytest.fixture
    def registry(self) -> Registry:
        """Give a registry that has the plugin and ours, and nothing else."""
        return _loaded(self.plugin)[0]

    def test_outputs_have_the_declared_shapes(self, head: str, backbone: str, registry: Registry) -> None:
        """At odd sizes."""
        for size in self.sizes:
            head_conformance.check_head_outputs(head, backbone, registry, size, **self._asked(head))

    def test_counts_are_the_declared_ones(self, head: str, backbone: str, registry: Registry) -> None:
        """Parameters, and the tensors that the head's layers state."""
        head_conformance.check_head_counts(head, backbone, registry, **self._asked(head))

    def test_options_are_checked_and_kept(self, head: str, backbone: str, registry: Registry) -> None:
        """Misspelled ones are refused; other numbers of classes change what `per_class` names."""
        head_conformance.check_head_options(head, backbone, registry)

    def test_evaluation_is_deterministic(self, head: str, backbone: str, registry: Registry) -> None:
        """Two calls return the same."""
        head_conformance.check_head_determinism(head, backbone, registry, self.sizes[0], **self._asked(head))

    def test_everything_learns(self, head: str, backbone: str, registry: Registry) -> None:
        """Every parameter gets a gradient."""
        head_conformance.check_head_gradients(head, backbone, registry, self.sizes[0], **self._asked(head))

    def test_files_hold_the_same_model(self, head: str, backbone: str, registry: Registry, tmp_path: Path) -> None:
        """Saved as safetensors and loaded."""
        head_conformance.check_head_copies(head, backbone, registry, tmp_path, self.sizes[0], **self._asked(head))

    def test_declaring_needs_no_torch(self) -> None:
        """Importing the plugin and asking its hooks."""
        conformance.check_torch_free(_module_name(self.plugin))

    def _asked(self, head: str) -> Mapping[str, Any]:
        return self.options.get(head, {})


def _module_name(plugin: str | ModuleType) -> str:
    return plugin if isinstance(plugin, str) else plugin.__name__

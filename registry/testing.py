"""The conformance kit: test a plugin with one class.

Save this as a test file of the plugin and run pytest:

>>> from featuretap.registry.testing import BackboneConformance
>>> class TestTinynet(BackboneConformance):
...     plugin = "tinynet.plugin"

pytest then runs one test per check and backbone. Each test compares the declared values with real forward passes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar, Literal

import pytest

from featuretap.catalogue.hookspecs import GROUP
from featuretap.catalogue.plugin_loading import Plugin, traceback_of
from featuretap.registry import conformance, head_conformance
from featuretap.registry.diagnosis import check_torch_free
from featuretap.registry.registry import Registry
from featuretap.support.errors import Hint, SpecError

__all__ = ["BackboneConformance", "HeadConformance", "isolated_registry"]


@pytest.fixture
def isolated_registry() -> Registry:
    """Provide a registry with only the built-in plugins, as a pytest fixture.

    Installed plugins and the user's catalogue are not read.

    Returns:
        The registry.

    Examples:
        In a `conftest.py`, importing the fixture makes it available to every test:

        >>> from featuretap.registry.testing import isolated_registry
        >>> def test_plugins(isolated_registry):
        ...     assert isolated_registry.list_plugins() == ["featuretap"]
    """
    return Registry(discover=False)


class _Conformance:
    plugin: ClassVar[str | ModuleType]

    @pytest.fixture
    def registry(self) -> Registry:
        """Provide a registry with the plugin and the built-in plugins."""
        return self._load_plugin()[0]

    def test_names_are_not_taken(self) -> None:
        """No name of the plugin is already used by featuretap."""
        problems = self._load_plugin()[0].problems
        if problems:
            raise _failure(*problems)

    def test_plugin_does_not_import_torch(self) -> None:
        """Importing the plugin and calling its hooks does not import PyTorch."""
        check_torch_free(self._value())

    def _value(self) -> str:
        """Return the import string of the plugin, as in an entry point."""
        plugin = getattr(self, "plugin", None)
        if plugin is None:
            raise _failure(f'{type(self).__name__} does not name a plugin; set plugin = "package.module" in it')
        return plugin if isinstance(plugin, str) else plugin.__name__

    def _load_plugin(self) -> tuple[Registry, Plugin]:
        """Load the plugin. Failures of the plugin are reported without the kit's source lines."""
        value = self._value()
        registry = Registry(discover=False)
        built_in = [plugin for plugin in registry.plugins if plugin.value == value]
        if built_in:
            return registry, built_in[0]
        try:
            module = EntryPoint("plugin", value, GROUP).load() if isinstance(self.plugin, str) else self.plugin
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise _failure(f"plugin {value!r} cannot be imported", "", *traceback_of(error)) from None
        registry = Registry([module], discover=False)
        plugin = registry.plugins[-1]
        if plugin.error:
            raise _failure(plugin.failure, "", *traceback_of(plugin.error))
        return registry, plugin

    def _names(self, kind: Literal["backbones", "heads"]) -> Sequence[str]:
        """Return the names to test: those set on the class, or all names that the plugin declares."""
        names = getattr(self, kind) or [spec.name for spec in getattr(self._load_plugin()[1], kind)]
        if not names:
            raise _failure(
                f"plugin {self._value()!r} declares no {kind}; set {kind} to names of its namespace, or remove "
                "this test class"
            )
        return names


class BackboneConformance(_Conformance):
    """Tests for every backbone of a plugin.

    Attributes:
        plugin: the plugin's module, or its import string as in the entry point.
        backbones: names of the backbones to test; empty for all that the plugin declares. Backbones in an open
            namespace must be named.
        sizes: heights and widths of the test images in pixels. Change them if the network supports certain sizes only.
        variations: options for which shapes and counts are checked, in addition to the defaults. Tables of rows are
            also checked with some built-in variations.
        scripts: whether the backbone must work with `torch.jit.script`.

    Examples:
        >>> from featuretap.registry.testing import BackboneConformance
        >>> class TestTinynet(BackboneConformance):
        ...     plugin = "tinynet.plugin"
        ...     variations = ({"width": 0.5}, {"in_channels": 1})
    """

    backbones: ClassVar[Sequence[str]] = ()
    sizes: ClassVar[Sequence[tuple[int, int]]] = conformance.SIZES
    variations: ClassVar[Sequence[Mapping[str, Any]]] = ()
    scripts: ClassVar[bool] = True

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrize the tests by backbone."""
        if "backbone" in metafunc.fixturenames:
            metafunc.parametrize("backbone", self._names("backbones"))

    def test_maps_have_the_declared_shapes(self, backbone: str, registry: Registry) -> None:
        """Every tap has its declared shape, in any order and at odd image sizes."""
        with _add_advice(*RUNNING):
            conformance.check_shapes(backbone, registry, self.sizes)

    def test_counts_are_the_declared_ones(self, backbone: str, registry: Registry) -> None:
        """Parameters and multiply-adds are the declared ones."""
        conformance.check_counts(backbone, registry, self.sizes[0])

    def test_declarations_hold_with_other_options(self, backbone: str, registry: Registry) -> None:
        """Shapes and counts are also correct with other options."""
        spec = registry.backbone(backbone)
        variations = [*self.variations, *(conformance.TABLE_VARIATIONS if spec.stages else ())]
        conformance.check_options(backbone, registry, self.sizes[0], variations)

    def test_each_map_is_independent_of_other_taps(self, backbone: str, registry: Registry) -> None:
        """No layer writes into a feature map that is returned."""
        conformance.check_each_map_alone(backbone, registry, self.sizes[0])

    def test_evaluation_is_deterministic(self, backbone: str, registry: Registry) -> None:
        """Outputs in evaluation mode depend neither on random numbers nor on the rest of the batch."""
        trial = conformance.build_trial(backbone, registry, self.sizes[0])
        conformance.check_determinism(trial)
        conformance.check_batch(trial)

    def test_gradients_reach_every_parameter(self, backbone: str, registry: Registry) -> None:
        """Every parameter and the image get gradients."""
        conformance.check_gradients(conformance.build_trial(backbone, registry, self.sizes[0]))

    def test_frozen_levels_do_not_change(self, backbone: str, registry: Registry) -> None:
        """Frozen parameters and batch-norm statistics do not change in training."""
        conformance.check_freezing(backbone, registry, self.sizes[0])

    def test_a_bare_backbone_has_a_subset_of_the_models_tensors(self, backbone: str, registry: Registry) -> None:
        """Files of full models can be loaded into parts of them."""
        conformance.check_keys(backbone, registry)

    def test_copies_and_saved_files_are_equal(self, backbone: str, registry: Registry, tmp_path: Path) -> None:
        """Deep copies, and models that were saved and loaded, return the same outputs."""
        trial = conformance.build_trial(backbone, registry, self.sizes[0])
        conformance.check_deep_copy(trial)
        conformance.check_file(trial, registry, tmp_path)

    def test_it_scripts(self, backbone: str, registry: Registry) -> None:
        """The backbone works with `torch.jit.script`, unless `scripts` is False."""
        if self.scripts:
            trial = conformance.build_trial(backbone, registry, self.sizes[0])
            with _add_advice(*SCRIPTING):
                conformance.check_exports("scripted", trial)

    def test_it_exports(self, backbone: str, registry: Registry) -> None:
        """The backbone works with `torch.export.export`."""
        conformance.check_exports("exported", conformance.build_trial(backbone, registry, self.sizes[0]))

    def test_nodes_compute_what_modules_do(self, backbone: str, registry: Registry) -> None:
        """The ONNX nodes of the layers compute the same as the modules. Skipped without onnx and onnxruntime."""
        _check_nodes(conformance.build_trial(backbone, registry, self.sizes[0]))


class HeadConformance(_Conformance):
    """Tests for every head of a plugin, on one or more backbones.

    Attributes:
        plugin: the plugin's module, or its import string as in the entry point.
        heads: names of the heads to test; empty for all that the plugin declares.
        backbones: names of the backbones to test the heads on.
        sizes: heights and widths of the test images in pixels.
        options: head → options for its tests, such as a smaller image size of a detector.
        scripts: whether the models must work with `torch.jit.script`.

    Examples:
        >>> from featuretap.registry.testing import HeadConformance
        >>> class TestTinyHeads(HeadConformance):
        ...     plugin = "tinynet.plugin"
        ...     backbones = ("mobilenet_v3_small", "mobilenet_v2_050")
        ...     options = {"tiny_detector": {"num_classes": 3}}
    """

    heads: ClassVar[Sequence[str]] = ()
    backbones: ClassVar[Sequence[str]] = ("mobilenet_v3_small",)
    sizes: ClassVar[Sequence[tuple[int, int]]] = ((97, 161), (128, 96))
    options: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    scripts: ClassVar[bool] = True

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrize the tests by head and backbone."""
        if "head" in metafunc.fixturenames:
            metafunc.parametrize("head", self._names("heads"))
            metafunc.parametrize("backbone", self.backbones)

    def test_outputs_have_the_declared_shapes(self, head: str, backbone: str, registry: Registry) -> None:
        """Outputs have their declared shapes at odd image sizes."""
        for size in self.sizes:
            with _add_advice(*RUNNING):
                head_conformance.check_head_outputs(self._trial(head, backbone, registry, size))

    def test_counts_are_the_declared_ones(self, head: str, backbone: str, registry: Registry) -> None:
        """Parameters, multiply-adds and the tensors of the head's layers are the declared ones."""
        head_conformance.check_head_counts(self._trial(head, backbone, registry))

    def test_only_per_class_tensors_depend_on_the_classes(self, head: str, backbone: str, registry: Registry) -> None:
        """A different number of classes changes only the tensors that `per_class` names."""
        head_conformance.check_head_options(head, backbone, registry, self.options.get(head, {}))

    def test_evaluation_is_deterministic(self, head: str, backbone: str, registry: Registry) -> None:
        """Two calls return the same outputs."""
        conformance.check_determinism(self._trial(head, backbone, registry))

    def test_gradients_reach_every_parameter(self, head: str, backbone: str, registry: Registry) -> None:
        """Every parameter gets a gradient."""
        head_conformance.check_head_gradients(self._trial(head, backbone, registry))

    def test_it_shares_a_backbone(self, head: str, backbone: str, registry: Registry) -> None:
        """The outputs do not change if another head uses the same backbone."""
        head_conformance.check_shared_backbone(head, backbone, registry, self.sizes[0], self.options.get(head, {}))

    def test_saved_files_are_equal(self, head: str, backbone: str, registry: Registry, tmp_path: Path) -> None:
        """Models that were saved and loaded return the same outputs."""
        conformance.check_file(self._trial(head, backbone, registry), registry, tmp_path)

    @pytest.mark.filterwarnings(r"ignore:\w+ always returns a \(Losses, Detections\) tuple in scripting:UserWarning")
    def test_it_scripts(self, head: str, backbone: str, registry: Registry) -> None:
        """The model works with `torch.jit.script`, unless `scripts` is False."""
        if self.scripts:
            trial = self._trial(head, backbone, registry)
            with _add_advice(*SCRIPTING):
                conformance.check_exports("scripted", trial)

    def test_it_exports(self, head: str, backbone: str, registry: Registry) -> None:
        """The model works with `torch.export.export`. Heads that take raw images, like torchvision's detectors, are
        exempt.
        """
        if registry.head(head).images != "raw":
            conformance.check_exports("exported", self._trial(head, backbone, registry))

    def test_nodes_compute_what_modules_do(self, head: str, backbone: str, registry: Registry) -> None:
        """The ONNX nodes of the head compute the same as its modules. Skipped without onnx and onnxruntime."""
        _check_nodes(self._trial(head, backbone, registry))

    def _trial(
        self, head: str, backbone: str, registry: Registry, size: tuple[int, int] | None = None
    ) -> head_conformance.HeadTrial:
        options = self.options.get(head, {})
        return head_conformance.build_head_trial(head, backbone, registry, size or self.sizes[0], options)


@contextmanager
def _add_advice(problem: str, advice: str) -> Iterator[None]:
    """Add to a failed check the attribute of the test class that relaxes it.

    Args:
        problem: part of the message of the check.
        advice: text to add to this message.

    Raises:
        SpecError: the check failed.
    """
    try:
        yield
    except SpecError as error:
        if problem not in str(error):
            raise
        raise SpecError(str(error), hint=Hint(advice)) from error.__cause__


SCRIPTING = "cannot be scripted", "fix it, or set scripts = False in the test class"
RUNNING = " fails on a ", "fix it, or set the supported sizes in the test class, such as sizes = ((224, 224),)"


def _check_nodes(trial: conformance.Trial) -> None:
    for module in ("onnx", "onnxruntime"):
        pytest.importorskip(module)
    from featuretap.registry.node_conformance import check_nodes

    check_nodes(trial)


def _failure(*lines: str) -> BaseException:
    """Return a failure for which pytest prints only these lines, not the kit's source lines."""
    return pytest.fail.Exception("\n".join(lines), pytrace=False)

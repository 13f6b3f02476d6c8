"""The conformance kit: a plugin's whole test file is one class statement.

    from featuretap.registry.testing import BackboneConformance

    class TestTinynet(BackboneConformance):
        plugin = "tinynet.plugin"

Every backbone, or head, that the plugin provides is checked against its declaration by real forward passes. Needs
pytest, which then finds one test a promise and a name.
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
    """Give a registry in which nothing is discovered: featuretap's own plugins, no others, and no user's catalogue."""
    return Registry(discover=False)


class _Conformance:
    plugin: ClassVar[str | ModuleType]

    @pytest.fixture
    def registry(self) -> Registry:
        """Give a registry that has the plugin and ours, and nothing else."""
        return self._load_plugin()[0]

    def test_names_are_its_own(self) -> None:
        """No name of the plugin is one that featuretap has already."""
        problems = self._load_plugin()[0].problems
        if problems:
            raise _failure(*problems)

    def test_declaring_needs_no_torch(self) -> None:
        """Importing the plugin and asking its hooks."""
        check_torch_free(self._value())

    def _value(self) -> str:
        """Return what an entry point of the plugin names."""
        plugin = getattr(self, "plugin", None)
        if plugin is None:
            raise _failure(f'{type(self).__name__} names no plugin; write plugin = "package.module" in it')
        return plugin if isinstance(plugin, str) else plugin.__name__

    def _load_plugin(self) -> tuple[Registry, Plugin]:
        """Load the plugin; what its author did wrong is told without the lines of this kit."""
        value = self._value()
        registry = Registry(discover=False)
        ours = [plugin for plugin in registry.plugins if plugin.value == value]
        if ours:
            return registry, ours[0]
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
        """Return the names to test: those that the class gives, or all that the plugin declares."""
        names = getattr(self, kind) or [spec.name for spec in getattr(self._load_plugin()[1], kind)]
        if not names:
            raise _failure(
                f"plugin {self._value()!r} declares no {kind}; name those of its open namespace in {kind}, or leave "
                "out this class"
            )
        return names


class BackboneConformance(_Conformance):
    """Tests of every backbone that a plugin provides.

    Attributes:
        plugin: the plugin's module, or the import string of it; what the entry point names.
        backbones: names to test; empty for all that the plugin declares. Names in an open namespace have to be given.
        sizes: heights and widths in pixels of the images; name others where the network takes some sizes only.
        variations: options under which shapes and counts are checked besides the defaults; for tables of rows there
            are some already.
        scripts: whether `torch.jit.script` has to work.
    """

    backbones: ClassVar[Sequence[str]] = ()
    sizes: ClassVar[Sequence[tuple[int, int]]] = conformance.SIZES
    variations: ClassVar[Sequence[Mapping[str, Any]]] = ()
    scripts: ClassVar[bool] = True

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make a test of each promise and backbone."""
        if "backbone" in metafunc.fixturenames:
            metafunc.parametrize("backbone", self._names("backbones"))

    def test_maps_have_the_declared_shapes(self, backbone: str, registry: Registry) -> None:
        """Every tap, in any order, at odd sizes."""
        with _add_advice(*RUNNING):
            conformance.check_shapes(backbone, registry, self.sizes)

    def test_counts_are_the_declared_ones(self, backbone: str, registry: Registry) -> None:
        """Parameters and multiply-adds."""
        conformance.check_counts(backbone, registry, self.sizes[0])

    def test_declarations_hold_with_other_options(self, backbone: str, registry: Registry) -> None:
        """Shapes and counts follow from them."""
        spec = registry.backbone(backbone)
        variations = [*self.variations, *(conformance.TABLE_VARIATIONS if spec.stages else ())]
        conformance.check_options(backbone, registry, self.sizes[0], variations)

    def test_a_map_is_the_same_alone_and_among_others(self, backbone: str, registry: Registry) -> None:
        """No layer writes into a map that was returned."""
        conformance.check_each_map_alone(backbone, registry, self.sizes[0])

    def test_evaluation_depends_on_the_image_alone(self, backbone: str, registry: Registry) -> None:
        """Neither on chance nor on the batch."""
        trial = conformance.build_trial(backbone, registry, self.sizes[0])
        conformance.check_determinism(trial)
        conformance.check_batch(trial)

    def test_everything_learns(self, backbone: str, registry: Registry) -> None:
        """Every parameter and the image get gradients."""
        conformance.check_gradients(conformance.build_trial(backbone, registry, self.sizes[0]))

    def test_what_is_frozen_stays(self, backbone: str, registry: Registry) -> None:
        """Parameters and statistics of the first level, in training."""
        conformance.check_freezing(backbone, registry, self.sizes[0])

    def test_a_bare_backbone_has_a_subset_of_the_models_tensors(self, backbone: str, registry: Registry) -> None:
        """Files of whole models can be loaded into parts."""
        conformance.check_keys(backbone, registry)

    def test_files_and_copies_are_the_same(self, backbone: str, registry: Registry, tmp_path: Path) -> None:
        """Saved as safetensors and loaded, and copied."""
        trial = conformance.build_trial(backbone, registry, self.sizes[0])
        conformance.check_deep_copy(trial)
        conformance.check_file(trial, registry, tmp_path)

    def test_it_scripts(self, backbone: str, registry: Registry) -> None:
        """`torch.jit.script`, where `scripts`."""
        if self.scripts:
            trial = conformance.build_trial(backbone, registry, self.sizes[0])
            with _add_advice(*SCRIPTING):
                conformance.check_exports("scripted", trial)

    def test_it_exports(self, backbone: str, registry: Registry) -> None:
        """`torch.export.export`."""
        conformance.check_exports("exported", conformance.build_trial(backbone, registry, self.sizes[0]))

    def test_nodes_compute_what_modules_do(self, backbone: str, registry: Registry) -> None:
        """The ONNX nodes that layers name; skipped without onnx and onnxruntime."""
        _check_nodes(conformance.build_trial(backbone, registry, self.sizes[0]))


class HeadConformance(_Conformance):
    """Tests of every head that a plugin provides, on some backbones.

    Attributes:
        plugin: the plugin's module, or the import string of it; what the entry point names.
        heads: names to test; empty for all that the plugin declares.
        backbones: names of backbones to test them on.
        sizes: heights and widths in pixels of the images.
        options: head → options to test it with, such as small images of a detector.
        scripts: whether `torch.jit.script` has to work.
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
        """At odd sizes."""
        for size in self.sizes:
            with _add_advice(*RUNNING):
                head_conformance.check_head_outputs(self._trial(head, backbone, registry, size))

    def test_counts_are_the_declared_ones(self, head: str, backbone: str, registry: Registry) -> None:
        """Parameters, multiply-adds, and the tensors that the head's layers declare."""
        head_conformance.check_head_counts(self._trial(head, backbone, registry))

    def test_classes_change_what_is_said_to_be_per_class(self, head: str, backbone: str, registry: Registry) -> None:
        """Other numbers of classes change what `per_class` names."""
        head_conformance.check_head_options(head, backbone, registry, self.options.get(head, {}))

    def test_evaluation_is_deterministic(self, head: str, backbone: str, registry: Registry) -> None:
        """Two calls return the same."""
        conformance.check_determinism(self._trial(head, backbone, registry))

    def test_everything_learns(self, head: str, backbone: str, registry: Registry) -> None:
        """Every parameter gets a gradient."""
        head_conformance.check_head_gradients(self._trial(head, backbone, registry))

    def test_it_shares_a_backbone(self, head: str, backbone: str, registry: Registry) -> None:
        """Beside another head it returns what it returns alone."""
        head_conformance.check_shared_backbone(head, backbone, registry, self.sizes[0], self.options.get(head, {}))

    def test_files_hold_the_same_model(self, head: str, backbone: str, registry: Registry, tmp_path: Path) -> None:
        """Saved as safetensors and loaded."""
        conformance.check_file(self._trial(head, backbone, registry), registry, tmp_path)

    @pytest.mark.filterwarnings(r"ignore:\w+ always returns a \(Losses, Detections\) tuple in scripting:UserWarning")
    def test_it_scripts(self, head: str, backbone: str, registry: Registry) -> None:
        """`torch.jit.script`, where `scripts`."""
        if self.scripts:
            trial = self._trial(head, backbone, registry)
            with _add_advice(*SCRIPTING):
                conformance.check_exports("scripted", trial)

    def test_it_exports(self, head: str, backbone: str, registry: Registry) -> None:
        """`torch.export.export`, but for heads that want their images raw, as torchvision's detectors do."""
        if registry.head(head).images != "raw":
            conformance.check_exports("exported", self._trial(head, backbone, registry))

    def test_nodes_compute_what_modules_do(self, head: str, backbone: str, registry: Registry) -> None:
        """The ONNX nodes that a head names; skipped without onnx and onnxruntime."""
        _check_nodes(self._trial(head, backbone, registry))

    def _trial(
        self, head: str, backbone: str, registry: Registry, size: tuple[int, int] | None = None
    ) -> head_conformance.HeadTrial:
        options = self.options.get(head, {})
        return head_conformance.build_head_trial(head, backbone, registry, size or self.sizes[0], options)


@contextmanager
def _add_advice(problem: str, advice: str) -> Iterator[None]:
    """Add to a failed check with this problem how the test class is changed where nothing is wrong.

    Raises:
        SpecError: the check failed.
    """
    try:
        yield
    except SpecError as error:
        if problem not in str(error):
            raise
        raise SpecError(str(error), hint=Hint(advice)) from error.__cause__


SCRIPTING = "cannot be scripted", "change that, or write scripts = False in the test class"
RUNNING = " fails on a ", "change that, or write the sizes that it takes in the test class, as sizes = ((224, 224),)"


def _check_nodes(trial: conformance.Trial) -> None:
    for module in ("onnx", "onnxruntime"):
        pytest.importorskip(module)
    from featuretap.registry.node_conformance import check_nodes

    check_nodes(trial)


def _failure(*lines: str) -> BaseException:
    """Return a failure of which pytest prints these lines alone, not those of this kit."""
    return pytest.fail.Exception("\n".join(lines), pytrace=False)

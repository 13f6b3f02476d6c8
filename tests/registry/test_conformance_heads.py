"""The conformance kit on heads with one mistake each."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict  # noqa: UP035 - torch.jit.script knows typing's names only

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from featuretap.registry import Registry, conformance, head_conformance
from featuretap.registry.errors import SpecError
from featuretap.registry.head_conformance import HeadTrial
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.specs import RE, BackboneSpec, Conv, HeadSpec, Linear, Tap

SIZE = (33, 35)
Check = Callable[[str, Registry], None]


class Sound(nn.Module):
    """Logits computed from the means of C2."""

    def __init__(self, backbone: BackboneSpec, *, num_classes: int) -> None:
        super().__init__()
        self.logits = nn.Linear(8, num_classes)

    def forward(self, taps: Dict[str, Tensor]) -> Tensor:  # noqa: UP006
        return self.logits(taps["C2"].mean((2, 3)))


class Changed(Sound):
    """A sound head whose logits are replaced by the result of `changed`."""

    def forward(self, taps: dict[str, Tensor]) -> Any:
        return self.changed(super().forward(taps))

    def changed(self, logits: Tensor) -> Any:
        raise NotImplementedError


class WritesIntoMaps(Sound):
    def forward(self, taps: dict[str, Tensor]) -> Any:
        return self.logits(taps["C2"].mul_(2).mean((2, 3)))


class OtherShape(Changed):
    def changed(self, logits: Tensor) -> Any:
        return logits[..., None]


class OtherNames(Changed):
    def changed(self, logits: Tensor) -> Any:
        return {"scores": logits}


class ReturnsTuple(Changed):
    def changed(self, logits: Tensor) -> Any:
        return logits, logits


class ReturnsLists(Changed):
    def changed(self, logits: Tensor) -> Any:
        return {"logits": [logits]}


class ReturnsDictsOfNumbers(Changed):
    def changed(self, logits: Tensor) -> Any:
        return [{"logits": 1.0}, {"logits": 2.0}]


class ForgetsTheBatch(Changed):
    def changed(self, logits: Tensor) -> Any:
        return logits[:1]


class Exits(Changed):
    def changed(self, logits: Tensor) -> Any:
        raise SystemExit(0)


class FailsInTraining(Changed):
    def changed(self, logits: Tensor) -> Any:
        if self.training:
            raise ValueError("no idea")
        return logits


class ExitsWhenBuilt(Sound):
    def __init__(self, backbone: BackboneSpec, *, num_classes: int) -> None:
        raise SystemExit(0)


class MoreParameters(Sound):
    def __init__(self, backbone: BackboneSpec, *, num_classes: int) -> None:
        super().__init__(backbone, num_classes=num_classes)
        self.scale = nn.Parameter(torch.ones(3))


class Twice(Sound):
    def forward(self, taps: dict[str, Tensor]) -> Tensor:
        return super().forward(taps) + super().forward(taps)


class OtherTensors(nn.Module):
    def __init__(self, backbone: BackboneSpec, *, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(8, num_classes)

    def forward(self, taps: dict[str, Tensor]) -> Tensor:
        return self.fc(taps["C2"].mean((2, 3)))


class MoreTensors(Sound):
    def __init__(self, backbone: BackboneSpec, *, num_classes: int) -> None:
        super().__init__(backbone, num_classes=num_classes)
        self.register_buffer("mean", torch.zeros(3))


class Drops(Changed):
    def changed(self, logits: Tensor) -> Any:
        return functional.dropout(logits, 0.5, training=True)


class Detaches(Changed):
    def changed(self, logits: Tensor) -> Any:
        return logits.detach()


class DetachesTheBackbone(Sound):
    def forward(self, taps: dict[str, Tensor]) -> Tensor:
        return super().forward({address: values.detach() for address, values in taps.items()})


class InfiniteGradient(Changed):
    def changed(self, logits: Tensor) -> Any:
        return logits + (logits * 0).abs().sqrt()


class HidesItsState(Sound):
    def __init__(self, backbone: BackboneSpec, *, num_classes: int) -> None:
        super().__init__(backbone, num_classes=num_classes)
        self.scale = torch.rand(1)

    def forward(self, taps: dict[str, Tensor]) -> Tensor:
        return super().forward(taps) * self.scale


class CannotBeScripted(Changed):
    def changed(self, logits: Tensor) -> Any:
        return logits


class ScriptsToSomethingElse(Sound):
    def forward(self, taps: Dict[str, Tensor]) -> Tensor:  # noqa: UP006
        logits = self.logits(taps["C2"].mean((2, 3)))
        if torch.jit.is_scripting():
            logits = logits + 1
        return logits


class CannotBeExported(Changed):
    def changed(self, logits: Tensor) -> Any:
        return logits + 1 if logits.sum() > 0 else logits


class ExportsToSomethingElse(Changed):
    def changed(self, logits: Tensor) -> Any:
        return logits + 1 if torch.compiler.is_exporting() else logits


class OtherTaps(nn.Module):
    """A head that returns a map with more channels than it declares."""

    def __init__(self, backbone: BackboneSpec, *, num_classes: None) -> None:
        super().__init__()

    def forward(self, taps: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"P2": taps["C2"]}


def layers(backbone: BackboneSpec, *, num_classes: int) -> tuple[Linear, ...]:
    return (Linear("logits", 8, num_classes),)


def outputs(backbone: BackboneSpec, *, num_classes: int, height: int, width: int) -> dict[str, Any]:
    return {"logits": (num_classes,)}


def map_taps(backbone: BackboneSpec, *, num_classes: None) -> dict[str, Tap]:
    return {"P2": Tap(4, 4)}


def map_outputs(backbone: BackboneSpec, *, num_classes: None, height: int, width: int) -> dict[str, Any]:
    return {"P2": backbone.taps["C2"].shape(height, width)}


def head(kind: type[nn.Module], **changed: Any) -> HeadSpec:
    stated = {"layers": f"{__name__}:layers", "outputs": f"{__name__}:outputs", "num_classes": 4, **changed}
    return HeadSpec(kind.__name__, ("C2",), f"{__name__}:{kind.__name__}", **stated)


HEADS = [
    head(Sound),
    *map(head, Changed.__subclasses__()),
    *(head(kind) for kind in Sound.__subclasses__() if kind is not Changed),
    head(OtherTensors, per_class=("logits.", "classes.")),
    head(OtherTaps, layers="", num_classes=None, taps=f"{__name__}:map_taps", outputs=f"{__name__}:map_outputs"),
]
TINY = BackboneSpec("tinynet", stages=((Conv(3, 8, RE),),) * 2)


@pytest.fixture(scope="module")
def wrong() -> Registry:
    plugin = SimpleNamespace(
        __name__="wrong",
        featuretap_heads=hookimpl(lambda: HEADS),
        featuretap_backbones=hookimpl(lambda: [TINY]),
    )
    return Registry([plugin], discover=False)


def trial_of(head: str, registry: Registry) -> HeadTrial:
    return head_conformance.build_head_trial(head, "tinynet", registry, SIZE)


CHECKS: Mapping[str, Callable[[HeadTrial], None]] = {
    "outputs": head_conformance.check_head_outputs,
    "counts": head_conformance.check_head_counts,
    "determinism": conformance.check_determinism,
    "gradients": head_conformance.check_head_gradients,
    "scripts": partial(conformance.check_exports, "scripted"),
    "exports": partial(conformance.check_exports, "exported"),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_sound_head_passes(wrong: Registry, check: Callable[[HeadTrial], None]) -> None:
    check(trial_of("Sound", wrong))


def test_a_sound_head_passes_the_checks_of_classes_and_files(wrong: Registry, tmp_path: Path) -> None:
    head_conformance.check_head_options("Sound", "tinynet", wrong)
    head_conformance.check_head_options("OtherTaps", "tinynet", wrong)
    conformance.check_file(trial_of("Sound", wrong), wrong, tmp_path)


SPEC = "breaks its spec: "
AN_IMAGE = f"{SPEC}for a 33x35 image "
SHOULD = "should return a tensor (2, ...), a dict of such tensors, or a list of two dicts for two images, got "


@pytest.mark.parametrize(
    ("name", "check", "message"),
    [
        ("OtherShape", "outputs", AN_IMAGE + "logits should be (4,), got (4, 1)"),
        ("OtherNames", "outputs", SPEC + "it should return logits, got scores"),
        ("ReturnsTuple", "outputs", SHOULD + "a tuple"),
        ("ReturnsLists", "outputs", SHOULD + "a dict of logits: a list"),
        ("ReturnsDictsOfNumbers", "outputs", SHOULD + "a list"),
        ("ForgetsTheBatch", "outputs", SHOULD + "a dict of logits: a tensor (1, 4)"),
        ("OtherTaps", "outputs", SPEC + "its tap P2 should have 4 channels, but has 8"),
        ("Exits", "outputs", "fails on a 33x35 image (SystemExit: 0)"),
        ("ExitsWhenBuilt", "outputs", "cannot be built (SystemExit: 0)"),
        ("FailsInTraining", "gradients", "fails in training on a 33x35 image (ValueError: no idea)"),
        ("MoreParameters", "counts", SPEC + "it declares 860 parameters, but has 863"),
        ("Twice", "counts", SPEC + "it declares 112,784 multiply-adds for a 33x35 image, but has 112,816"),
        ("OtherTensors", "counts", SPEC + "its layers declare logits.weight as (4, 8), but it is absent"),
        ("MoreTensors", "counts", SPEC + "its layers declare mean as absent, but it is (3,)"),
        ("Drops", "determinism", "returns a different 'logits' for the same image in a second call in evaluation mode"),
        ("Detaches", "gradients", "gives backbone.stages.C1.0.conv.weight no gradient"),
        ("DetachesTheBackbone", "gradients", "gives backbone.stages.C1.0.conv.weight no gradient"),
        ("MoreParameters", "gradients", "gives head.scale no gradient"),
        ("InfiniteGradient", "gradients", "gives backbone.stages.C1.0.conv.weight a gradient that is not finite"),
        ("ScriptsToSomethingElse", "scripts", "returns a different 'logits' after it was scripted"),
        ("ExportsToSomethingElse", "exports", "returns a different 'logits' after it was exported"),
    ],
)
def test_a_wrong_head_fails_with_its_mistake_in_the_message(
    wrong: Registry, name: str, check: str, message: str
) -> None:
    with pytest.raises(SpecError) as error:
        CHECKS[check](trial_of(name, wrong))
    assert str(error.value) == f"head {name!r} on 'tinynet' {message}"


def test_a_head_with_undeclared_class_layers_fails(wrong: Registry) -> None:
    with pytest.raises(SpecError) as error:
        head_conformance.check_head_options("OtherTensors", "tinynet", wrong)
    assert str(error.value) == (
        "head 'OtherTensors' breaks its spec: fc.weight depends on the number of classes, but per_class=('logits.', "
        "'classes.') does not include it"
    )


def test_a_head_that_writes_into_maps_fails_beside_another(wrong: Registry) -> None:
    head_conformance.check_shared_backbone("Sound", "tinynet", wrong, SIZE, {"width": 0.5})
    with pytest.raises(SpecError) as error:
        head_conformance.check_shared_backbone("WritesIntoMaps", "tinynet", wrong, SIZE)
    assert str(error.value) == (
        "head 'WritesIntoMaps' on 'tinynet' returns a different 'logits' when another head uses the same backbone; a "
        "head must not write into the maps, and must depend on nothing else"
    )


def test_a_head_that_changes_when_it_is_loaded_fails(wrong: Registry, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as error:
        conformance.check_file(trial_of("HidesItsState", wrong), wrong, tmp_path)
    assert str(error.value) == (
        "head 'HidesItsState' on 'tinynet' returns a different 'logits' after it was loaded from a file; keep all "
        "state in the state_dict, or derive it from the options"
    )


@pytest.mark.parametrize(
    ("name", "check", "beginning"),
    [
        ("CannotBeScripted", "scripts", "cannot be scripted (RuntimeError: "),
        ("CannotBeExported", "exports", "cannot be exported (GuardOnDataDependentSymNode: "),
    ],
)
def test_foreign_errors_are_reported_in_one_short_line(wrong: Registry, name: str, check: str, beginning: str) -> None:
    with pytest.raises(SpecError) as error:
        CHECKS[check](trial_of(name, wrong))
    said = str(error.value)
    assert said.startswith(f"head {name!r} on 'tinynet' {beginning}")
    assert len(said) < 400
    assert "\n" not in said
    assert error.value.__cause__ is not None

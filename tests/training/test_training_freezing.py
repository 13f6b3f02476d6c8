"""Frozen levels do not change, including their batch-norm statistics, and are unfrozen at the configured epoch."""

from pathlib import Path

import pytest
import torch
from support.training_runs import coloured_folder, small_run
from torch import nn

from featuretap import registry
from featuretap.registry.errors import TrainingError
from featuretap.registry.specs import BackboneSpec
from featuretap.workflows.training.configuration import make_configuration
from featuretap.workflows.training.models import resolve_model
from featuretap.workflows.training.optimization import freeze_through, last_frozen
from featuretap.workflows.training.run import train

LEVELS = ("C1", "C2", "C3", "C4", "C5")


@pytest.mark.parametrize(
    ("first", "every", "frozen"),
    [
        (None, 0, [None] * 5),
        ("C4", 0, ["C4"] * 5),
        ("C2", 1, ["C2", "C1", None, None, None]),
        ("C2", 2, ["C2", "C2", "C1", "C1", None]),
    ],
)
def test_one_more_level_thaws_every_few_epochs(first: str | None, every: int, frozen: list[str | None]) -> None:
    assert [last_frozen(LEVELS, first, every, epoch) for epoch in range(5)] == frozen


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "timm/mobilenetv3_small_050"])
def test_a_level_thaws_and_nothing_else_changes(name: str) -> None:
    model = registry.build(name, num_classes=3)
    assert isinstance(model.backbone, nn.Module)
    learning = []
    for level in ("C4", "C1", None, "C2"):
        freeze_through(model, level)
        model.train()
        learning.append({path for path, parameter in model.named_parameters() if parameter.requires_grad})
        norms = {p for p, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and not m.training}
        assert bool(norms) == (level is not None)
        assert all(not {f"{path}.weight"} & learning[-1] for path in norms)
    assert learning[0] < learning[3] < learning[1] < learning[2]
    assert learning[2] == {path for path, _ in model.named_parameters()}


def test_norms_frozen_by_an_option_stay_frozen() -> None:
    model = registry.build("mobilenet_v2", num_classes=3, freeze_norm=True)
    freeze_through(model, "C1")
    freeze_through(model, None)
    model.train()
    assert not any(m.training for p, m in model.named_modules() if p.startswith("backbone") and p.endswith(".norm"))


def test_frozen_levels_do_not_change_and_load_unfrozen(tmp_path: Path) -> None:
    data = coloured_folder(tmp_path / "data")
    start = registry.save(registry.build("mobilenet_v1", width=0.25, num_classes=3), tmp_path / "start.safetensors")
    result = train(
        small_run(data, tmp_path / "run", backbone=None, options={}, weights=str(start), freeze="C3", epochs=1),
        log=lambda line: None,
    )
    before, after = (registry.load(path).state_dict() for path in (start, result.folder / "last.safetensors"))
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    frozen = {
        name
        for name in before
        if name.startswith(("backbone.stages.C1.", "backbone.stages.C2.", "backbone.stages.C3."))
    }
    assert frozen <= same
    assert not {name for name in same - frozen if name.endswith(("conv.weight", "running_mean", "logits.weight"))}
    loaded = registry.load(result.folder / "last.safetensors")
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_level_that_a_backbone_lacks_cannot_be_frozen() -> None:
    settings = {"data": "digits", "freeze": "C2"}
    resolve_model(make_configuration({**settings, "backbone": "mobilenet_v2", "taps": ["C3"]}))
    vit = registry.spec("timm/vit_tiny_patch16_224", features_only=True)
    assert isinstance(vit, BackboneSpec)
    with pytest.raises(TrainingError) as caught:
        resolve_model(make_configuration({**settings, "backbone": "timm/vit_tiny_patch16_224", "taps": ["C4"]}))
    assert (
        str(caught.value)
        == f"'timm/vit_tiny_patch16_224' has no level C2 to freeze; its levels are {', '.join(vit.levels)}"
    )

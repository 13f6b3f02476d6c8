"""Gradient checkpointing stores fewer activations, and changes no gradients or statistics."""

import copy
from typing import Any

import pytest
import timm
import torch
from support.heads import build_head, loss_of
from support.timm_models import OURS
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from featuretap.registry import Registry
from featuretap.registry.errors import OptionError

OPTIONS: dict[str, dict[str, Any]] = {
    "levels": {"features_only": True},
    "inner taps": {"features_only": True, "taps": ("C2", "C4.expansion", "C4")},
    "classifier": {"num_classes": 3, "dropout": 0.5},
    "frozen levels": {"num_classes": 3, "freeze": "C2"},
    "frozen norms": {"num_classes": 3, "freeze_norm": True},
    "TensorFlow's padding": {"num_classes": 3, "padding": "same"},
}


def run(model: nn.Module) -> tuple[list[Tensor], int]:
    """Return outputs, gradients and buffers of a step, and the bytes of the stored activations."""
    torch.manual_seed(0)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(torch.rand(4, 3, 64, 64))
    outputs = list(out.values()) if isinstance(out, dict) else out if isinstance(out, list) else [out]
    torch.stack([output.pow(2).mean() for output in outputs]).sum().backward()
    gradients = [torch.zeros(1) if p.grad is None else p.grad for p in model.parameters()]
    return [*outputs, *gradients, *model.buffers()], sum(kept.values())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_outputs_gradients_and_statistics_are_equal_bit_by_bit(registry: Registry, options: dict[str, Any]) -> None:
    model = registry.build("mobilenet_v3_small", **options).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    assert list(other.state_dict()) == list(model.state_dict())
    (expected, everything), (actual, less) = run(model), run(other)
    assert [index for index, pair in enumerate(zip(expected, actual, strict=True)) if not torch.equal(*pair)] == []
    # Both models store the parameters and the maps at the ends of levels.
    assert less < 0.6 * everything


def test_statistics_are_updated_once(registry: Registry) -> None:
    model = registry.build("mobilenet_v1_025", num_classes=3).train()
    model.set_grad_checkpointing()
    for steps in (1, 2):
        run(model)
        counts = {int(buffer) for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked")}
        assert counts == {steps}


def test_it_is_switched_off_again(registry: Registry) -> None:
    model = registry.build("mobilenet_v1_025", num_classes=3).train()
    _, everything = run(model)
    model.set_grad_checkpointing()
    assert run(model)[1] < everything
    model.set_grad_checkpointing(False)
    assert run(model)[1] == everything


@pytest.mark.parametrize("head", ["retinanet", "lraspp", "fpn"])
def test_models_with_every_kind_of_head_have_it(registry: Registry, head: str) -> None:
    models = [build_head(registry, "mobilenet_v1_025", head).train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].set_grad_checkpointing()
    for model in models:
        torch.manual_seed(0)
        loss_of(model, head, 2, 64, 96).backward()
    for (name, expected), (_, actual) in zip(*(model.named_parameters() for model in models), strict=True):
        assert torch.equal(expected.grad, actual.grad), name


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated")
def test_torchscript_and_fx_leave_it_out(registry: Registry) -> None:
    model = registry.build("mobilenet_v1_025", num_classes=3).eval()
    model.set_grad_checkpointing()
    images = torch.rand(1, 3, 33, 65)
    with torch.no_grad():
        for converted in (torch.jit.script(model), torch.fx.symbolic_trace(model)):
            torch.testing.assert_close(converted(images), model(images))


def test_a_backbone_without_it_is_refused(registry: Registry) -> None:
    model = registry.build("mobilenet_v1_025", num_classes=3)
    model.backbone = nn.Identity()
    with pytest.raises(OptionError) as error:
        model.set_grad_checkpointing()
    assert str(error.value) == (
        "Identity has no set_grad_checkpointing; wrap its modules with torch.utils.checkpoint, or train with smaller "
        "batches"
    )


def test_a_model_of_timm_updates_its_statistics_once_too() -> None:
    models = [timm.create_model("featuretap_mobilenet_v3_small", num_classes=3).train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].set_grad_checkpointing()
    (expected, everything), (actual, less) = run(models[0]), run(models[1])
    assert [index for index, pair in enumerate(zip(expected, actual, strict=True)) if not torch.equal(*pair)] == []
    assert less < 0.6 * everything


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3, 4), (1, 2)], ids=["all levels", "two levels"])
def test_a_feature_extractor_of_timm_updates_its_statistics_once_too(out_indices: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"features_only": True, "out_indices": out_indices}
    models = [timm.create_model("featuretap_mobilenet_v3_small", **options).train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].set_grad_checkpointing()
    (expected, everything), (actual, less) = run(models[0]), run(models[1])
    assert [index for index, pair in enumerate(zip(expected, actual, strict=True)) if not torch.equal(*pair)] == []
    assert less < 0.6 * everything
    models[1].set_grad_checkpointing(False)
    assert run(models[1])[1] == everything


@pytest.mark.parametrize("backbone", ["mobilenet_v1_025", "mobilenet_v3_small"])
def test_timms_optimiser_decays_the_learning_rate_by_depth(backbone: str) -> None:
    model = timm.create_model(f"featuretap_{backbone}")
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    scales = [scale[id(parameter)] for parameter in model.parameters()]
    assert scales == sorted(scales)
    assert scales[-1] == 1
    # One step for each block, and one for the head.
    assert scales[0] == 0.5 ** len(OURS.spec(backbone, features_only=True).all_blocks)
    decays = {bool(group["weight_decay"]) for group in groups}
    assert decays == {True, False}

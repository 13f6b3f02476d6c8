"""A single training epoch, compared step by step with gradients added up by hand."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from featuretap.workflows.training.loop import Trainer, train_epoch
from featuretap.workflows.training.optimization import Schedule


class Linear(nn.Module):
    """A model with two weights, whose gradients are the mean of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))


class Given:
    """A task whose gradients equal the mean of the images."""

    def loss(self, model: Linear, images: Tensor, targets: Tensor) -> Tensor:
        return (model.weight * images.mean(0)).sum()


@pytest.mark.parametrize(
    ("together", "moved"),
    [
        (1, [1 + 2 + 3 + 4 + 5, 0.0]),
        (2, [(1 + 2) / 2 + (3 + 4) / 2 + 5, 0.0]),
        (3, [(1 + 2 + 3) / 3 + (4 + 5) / 2, 0.0]),
        (5, [3.0, 0.0]),
    ],
)
def test_an_update_uses_the_mean_gradient_of_its_steps(together: int, moved: list[float]) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=together)
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    samples = [(torch.tensor([float(number), 0.0]), 0) for number in range(1, 6)]
    wrapped, prepared, batches = accelerator.prepare(model, optimizer, torch.utils.data.DataLoader(samples))
    schedule = Schedule(LambdaLR(optimizer, lambda update: 1.0))
    task: Any = Given()
    trainer = Trainer(accelerator, task, wrapped, model, None, prepared, schedule, 0.0)
    _, lr = train_epoch(trainer, batches, "epoch 1", lambda images, detail: None)
    assert model.weight.tolist() == pytest.approx([-value for value in moved])
    assert schedule.updates == -(-5 // together)
    assert lr == 1.0

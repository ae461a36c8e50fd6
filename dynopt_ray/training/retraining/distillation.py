"""Distillation: learning from the outputs of the network before it was pruned."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynopt_ray.structure import Inputs, run
from dynopt_ray.tasks import AddedLoss, OutputKind
from dynopt_ray.training.numbers import positive


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Adds the distance from a teacher's outputs to the loss.

    For labels that is weight · T² · KL(softmax(teacher / T) ‖ softmax(output / T)), for numbers
    weight · mean squared difference. T² keeps the size of its gradient independent of T. One logit
    z stands for two classes with the outputs 0 and z.

    Attributes:
        weight: how much it counts beside the task's loss, > 0.
        temperature: T, how much of the teacher's doubt is learned, > 0.

    Raises:
        ValueError: a number out of range.

    References:
        Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network".
    """

    weight: float = 1.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        for name in ("weight", "temperature"):
            positive(f"Distillation: {name}", getattr(self, name))

    def from_teacher(self, teacher: nn.Module, *, outputs: OutputKind) -> AddedLoss:
        """The loss that a student adds; the teacher is copied as it is now.

        Args:
            teacher: the network to learn from.
            outputs: what it gives; see `Task.outputs`.
        """
        teacher = copy.deepcopy(teacher).eval().requires_grad_(False)

        def added_loss(inputs: Inputs, output: Tensor) -> Tensor:
            with torch.no_grad():
                wanted = run(teacher, inputs)
            if outputs == "numbers":
                return self.weight * F.mse_loss(output, wanted)
            student = self._log_probabilities(output, outputs)
            known = self._log_probabilities(wanted, outputs)
            per_entry = F.kl_div(student, known, reduction="none", log_target=True)
            return self.weight * self.temperature**2 * per_entry.sum(1).mean()

        return added_loss

    def _log_probabilities(self, output: Tensor, outputs: OutputKind) -> Tensor:
        """Of classes, along dimension 1."""
        if outputs == "logits":
            output = torch.stack([torch.zeros_like(output), output], dim=1)
        return F.log_softmax(output / self.temperature, dim=1)

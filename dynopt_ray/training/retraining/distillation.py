"""Distillation: learn from the outputs of the network before it was pruned."""

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

    For labels, the distance is weight · T² · KL(softmax(teacher / T) ‖ softmax(output / T)). For
    numbers, it is weight · mean squared difference. The factor T² keeps the size of the gradient
    independent of T. A single logit z stands for two classes with the outputs 0 and z.

    Attributes:
        weight: weight of the distance relative to the task's loss, > 0.
        temperature: T, > 0. Higher values make the student learn more of the small probabilities
            that the teacher gives to other classes.

    Raises:
        ValueError: a number is out of range.

    References:
        Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network".
    """

    weight: float = 1.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        for name in ("weight", "temperature"):
            positive(f"Distillation: {name}", getattr(self, name))

    def from_teacher(self, teacher: nn.Module, *, outputs: OutputKind) -> AddedLoss:
        """Return the loss to add when training a student.

        Args:
            teacher: the network to learn from. It is copied now, so it may change afterwards.
            outputs: the kind of its outputs; see `Task.outputs`.
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
        """Return the log probabilities of the classes, along dimension 1."""
        if outputs == "logits":
            output = torch.stack([torch.zeros_like(output), output], dim=1)
        return F.log_softmax(output / self.temperature, dim=1)

"""Pruning trials that are retrained together, as one population."""

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.cluster.pruning_trials.pruned_training import PrunedTraining, TracedStart
from dynopt_ray.cluster.trials import Advance, Config, Measurement
from dynopt_ray.errors import DivergedError, DynoptError, SpecError
from dynopt_ray.population import (
    PaddedMember,
    StepRule,
    batch_rows,
    checked_layout,
    evaluate_together,
    padded_inputs,
    train_together,
)
from dynopt_ray.tasks import LOSSES, METRICS, Task
from dynopt_ray.training import make_optimizer, make_rate

Begin = Callable[[Config, Mapping[str, Any] | None], PrunedTraining]
"""(configuration, state to continue from) -> the pruned network and its retraining."""


@dataclass(eq=False)
class _Member:
    training: PrunedTraining
    padded: PaddedMember
    rates: list[float] = field(default_factory=list)
    rows_SB: Tensor = field(default_factory=lambda: torch.empty(0, 0, device="cpu"))
    losses: list[float] = field(default_factory=list)
    validation: tuple[float, float] = (math.nan, math.nan)
    error: Exception | None = None

    def update(self) -> None:
        """Bring the network and its optimizer up to date."""
        model, optimizer, _ = self.training.parts.learner
        self.padded.write_to(model, optimizer)


class PrunePack:
    """Trials that prune copies of one network and are retrained together.

    Args:
        start: the network.
        begin: begins or continues a trial.
    """

    def __init__(self, start: TracedStart, begin: Begin) -> None:
        self._begin = begin
        self._task = task = start.task
        self._layout = checked_layout(start.graph.model)
        self._train = _padded(*task.arrays("train"))
        self._validation = _padded(*task.arrays("validation"))
        self._members: dict[int, _Member] = {}

    def start(self, number: int, config: Config, state: Mapping[str, Any] | None) -> None:
        """See `TrialPack`."""
        training = self._begin(config, state)
        model, optimizer, _ = training.parts.learner
        padded = PaddedMember.of(model, optimizer, self._layout)
        self._members[number] = _Member(training, padded)

    def advance(self, numbers: Sequence[int]) -> Mapping[int, Advance]:
        """See `TrialPack`."""
        begun = time.monotonic()
        members = [self._members[number] for number in numbers]
        for member in members:
            self._prepare(member)
        for group in _groups(members, lambda one: (one.padded.stack, one.rows_SB.shape[1])):
            self._train_parts(group)
        for group in _groups(members, lambda one: one.padded.stack):
            self._evaluate(group)
        found = {
            number: _measurement(member) for number, member in zip(numbers, members, strict=True)
        }
        share_s = (time.monotonic() - begun) / len(numbers)
        return {number: Advance(one, share_s, error) for number, (one, error) in found.items()}

    def close(self, number: int) -> None:
        """See `TrialPack`."""
        self._members.pop(number, None)

    def _prepare(self, member: _Member) -> None:
        """Draw the rows of the next part, and look up its rates."""
        parts = member.training.parts
        num_rows, size = len(self._train[1]), parts.batch_size or _batch_size(self._task)
        assert size is not None  # see `family_of`
        member.losses = []
        try:
            member.rates = parts.next_part()
            _, _, generator = parts.learner
            member.rows_SB = batch_rows(num_rows, size, len(member.rates), [generator])[:, 0]
        except Exception as error:
            member.error = error

    def _train_parts(self, group: Sequence[_Member]) -> None:
        """Train members of one stack. If their parts differ by a step, some end it alone."""
        done = 0
        while due := [one for one in group if one.error is None and len(one.rates) > done]:
            end = min(len(member.rates) for member in due)
            self._train_steps(due, done, end)
            done = end
        for member in group:
            bad = [step for step, loss in enumerate(member.losses) if not math.isfinite(loss)]
            if bad and member.error is None:
                member.error = DivergedError(
                    f"{member.training.parts.progress}: the loss is {member.losses[bad[0]]} at "
                    f"step {bad[0] + 1} of {len(member.rates)}. Lower the learning rate"
                )

    def _train_steps(self, members: Sequence[_Member], begin: int, end: int) -> None:
        try:
            losses_SP = train_together(
                [member.padded for member in members],
                *self._train,
                rows_SPB=torch.stack([member.rows_SB[begin:end] for member in members], 1),
                rates_SP=torch.tensor(
                    [member.rates[begin:end] for member in members],
                    dtype=torch.float64,
                    device="cpu",
                ).T,
            )
        except Exception as error:
            _one_by_one(members, error, partial(self._train_steps, begin=begin, end=end))
            return
        for member, losses in zip(members, losses_SP.T.tolist(), strict=True):
            member.losses += losses

    def _evaluate(self, members: Sequence[_Member]) -> None:
        metric = self._task.metric or METRICS["accuracy"].function
        try:
            found = evaluate_together([one.padded for one in members], *self._validation, metric)
        except Exception as error:
            _one_by_one(members, error, self._evaluate)
            return
        for member, loss, value in zip(members, found.losses, found.metrics, strict=True):
            member.validation = loss, value


def _one_by_one(
    members: Sequence[_Member], error: Exception, run: Callable[[Sequence[_Member]], None]
) -> None:
    """Repeat for each member alone what has failed for all of them, or note the only one's error.

    For example, there may be too little memory. Members are as they were.
    """
    if len(members) == 1:
        members[0].error = error
        return
    for member in members:
        run([member])


def _measurement(member: _Member) -> tuple[Measurement | None, Exception | None]:
    """Return a member's measurement after a part, or its error."""
    if member.error is not None:
        return None, member.error
    parts, (validation_loss, metric) = member.training.parts, member.validation
    for name, figure in (("validation loss", validation_loss), ("metric", metric)):
        if not math.isfinite(figure):
            error = f"{parts.progress}: the {name} after the next part is {figure}"
            return None, DivergedError(error)
    step, figures = parts.finish_part(
        loss=math.fsum(member.losses) / len(member.losses),
        validation_loss=validation_loss,
        accuracy=metric,
    )
    try:
        return member.training.measurement(step, figures, member.update), None
    except Exception as error:
        return None, error


def _groups(members: Sequence[_Member], key: Callable[[_Member], Hashable]) -> list[list[_Member]]:
    groups: dict[Hashable, list[_Member]] = {}
    for member in members:
        if member.error is None:
            groups.setdefault(key(member), []).append(member)
    return list(groups.values())


def family_of(
    task: Task,
    model: nn.Module,
    *,
    optimizer: Any,
    lr: Any,
    batch_size: int | None,
    num_steps: int,
) -> Hashable:
    """Return what trials that are retrained together have in common.

    Raises:
        SpecError: the network, the loss, the optimizer or the learning rate cannot be part of a
            pack.
    """
    if task.loss is not LOSSES["cross_entropy"].function or task.outputs != "classes":
        raise SpecError(
            "pack: packs train on cross_entropy with one output per class; leave out pack"
        )
    if _batch_size(task) is None:
        raise SpecError("pack: packs draw batches from arrays, not from loaders; leave out pack")
    try:
        layout = checked_layout(model)
    except DynoptError as error:
        raise SpecError(f"pack: {error}") from error
    if make_rate(lr, num_steps).schedule is None:
        raise SpecError(
            f"space.lr: {lr!r:.80} adapts to one network's training, which a pack cannot follow; "
            "give a number or a schedule, or leave out pack"
        )
    try:
        rule = StepRule.of(make_optimizer(optimizer, model, lr=0.1))
    except DynoptError as error:
        raise SpecError(f"space.optimizer: {error}; or leave out pack") from error
    return layout.names, rule.name, batch_size or _batch_size(task)


def _batch_size(task: Task) -> int | None:
    """Return the task's rows per batch, or None if a loader makes its batches."""
    found: int | None = getattr(task.sources["train"], "batch_size", None)
    return found


def _padded(x_NI: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
    return padded_inputs(x_NI), y_N

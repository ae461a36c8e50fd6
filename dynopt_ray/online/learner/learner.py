"""The online learner: one network that predicts each event of a stream, then learns from it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynopt_ray.errors import DataError, DivergedError, LearnerError
from dynopt_ray.online.drift import Detector, Reaction, build_detector, build_reactions
from dynopt_ray.online.learner.admission import Admission, refusals
from dynopt_ray.online.learner.events import Quarantine, Rejected, as_batch, event_tensor
from dynopt_ray.online.learner.guard import Guard, UpdateBackup, Verdict
from dynopt_ray.online.learner.isolation import evaluation_mode, mix_seed, own_randomness
from dynopt_ray.online.learner.predictor import Predictor
from dynopt_ray.online.learner.rates import RateConfig, Rates
from dynopt_ray.online.learner.recent_events import EventBuffer
from dynopt_ray.online.learner.state import LearnerParts, learner_state, load_learner_state
from dynopt_ray.online.learner.targets import one_number
from dynopt_ray.online.learner.whole_numbers import WholeNumbers
from dynopt_ray.structure import (
    Edit,
    Graph,
    Receipt,
    check_optimizer,
    masked_parameters,
    set_masks,
    unwrapped,
)
from dynopt_ray.tasks import LossFunction, TargetKind, resolve_loss
from dynopt_ray.transfers import read_numbers

# A diverged network overflows at every event. Ten overflows in a row cannot be mere outliers.
_MAX_OVERFLOWS = 10
_MASKS = "masks of the network"


@dataclass(frozen=True)
class LearnResult:
    """The result of learning from one event or mini-batch.

    Attributes:
        event: the number of the last event of the call, counted from 1.
        rows: the rows of the call that were learned from; the others are in `rejected`.
        output: the network's outputs for these rows, before it learned from them.
        loss: the mean loss of these rows, before learning; NaN if there are none.
        errors: one error per row: the fraction of wrong classes (0 or 1 if an event has one
            label), or the loss of other targets.
        drift: whether the detector found drift in this call.
        verdict: what the guard did with the update; None if there was no update.
        lr: the learning rate of the optimizer's first parameter group.
        rejected: the events that were not learned from, with reasons.
        targets: whether the targets of these rows were treated as labels or as numbers.
    """

    event: int
    rows: tuple[int, ...]
    output: Tensor
    loss: float
    errors: tuple[float, ...]
    drift: bool
    verdict: Verdict | None
    lr: float
    rejected: tuple[Rejected, ...]
    targets: TargetKind = "labels"


class OnlineLearner:
    """A network that learns on a stream, one event or mini-batch at a time.

    The learner trains the network in its present mode (train mode for a new network) and predicts
    in eval mode. BatchNorm in train mode needs mini-batches of two or more events. For single
    events, put BatchNorm into eval mode, in which its statistics do not change. The learner's
    randomness depends only on `seed` and on the counts of its updates and other draws, not on the
    rest of the process. A learner is not safe to share between threads; `freeze()` returns a copy
    that is.

    Args:
        model: the network; it takes mini-batches whose first dimension counts the events.
        optimizer: any torch optimizer over the network's parameters, except LBFGS.
        loss: the name of a loss ("cross_entropy", "mse", …), or (output, target) -> mean loss.
        lr: a learning rate, a schedule (update number -> learning rate), or a controller that
            adapts the rates of this optimizer to the losses, given as an object or by name. None
            leaves the rates to the optimizer.
        detector: a drift detector or its name. It monitors one error per event: 0 or 1 for
            classes, the loss for other targets. None detects no drift.
        guard: judges every update by the loss on the latest events; None accepts all updates.
        reactions: what to do on drift: a reaction, its name, or several of them.
        structure: the traced network; needed if a reaction resizes the network.
        seed: seed of the learner's own randomness (dropout, replay order).

    Raises:
        UnknownNameError: no loss, learning-rate controller, detector or reaction has a given name.
        EditError: the optimizer is LBFGS, or trains none of the network's parameters.
        ValueError: a learning rate is negative or not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> learner = OnlineLearner(model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> learner.predict([0.0, 1.0, 0.0, 1.0]).shape
        torch.Size([3])
        >>> learner.learn([0.0, 1.0, 0.0, 1.0], 2).rows
        (0,)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        loss: str | LossFunction = "cross_entropy",
        lr: RateConfig | None = None,
        detector: str | Detector | None = None,
        guard: Guard | None = None,
        reactions: str | Reaction | Sequence[str | Reaction] = (),
        structure: Graph | None = None,
        seed: int = 0,
    ) -> None:
        check_optimizer(optimizer, model)
        objective = resolve_loss(loss)
        self.model = model
        self.optimizer = optimizer
        self.structure = structure
        self.rates = Rates(model, optimizer, lr)
        self.detector = build_detector(detector)
        self.guard = guard
        self.reactions = build_reactions(reactions)
        for reaction in self.reactions:
            reaction.prepare(self)
        wanted = [reaction.memory for reaction in self.reactions]
        self.memory = EventBuffer(max([guard.window if guard else 0, *wanted]))
        self.quarantine = Quarantine()
        self.events = 0
        self.updates = 0
        self.event_shape: torch.Size | None = None
        self._loss = objective.function
        self._seed = seed
        self._draws = 0
        self._overflows = 0
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        self._device = parameter.device if parameter is not None else torch.device("cpu")
        self._dtype = parameter.dtype if parameter is not None else torch.float32
        self._whole_numbers = WholeNumbers(self._dtype, self._device, self._outputs)
        self._admission = Admission(
            forward=self._outputs,
            loss=self._loss,
            dtype=self._dtype,
            device=self._device,
            targets=objective.targets,
            whole_numbers=self._whole_numbers,
        )

    def predict(self, x: Any) -> Tensor:
        """Return the network's output for one event or for a mini-batch of events.

        This changes nothing: no weight, no buffer, no mode of a module and no random state.

        Raises:
            DataError: x does not have the shape of the stream's events.
        """
        batch, single = as_batch(
            event_tensor(x, dtype=self._dtype, device=self._device), self.event_shape
        )
        output = self._outputs(self._whole_numbers(batch))
        return output[0] if single else output

    def learn(self, x: Any, y: Any) -> LearnResult:
        """Test the network on one event or mini-batch, then learn from it.

        Events that cannot be learned from are quarantined and reported; they change no weight. If
        the network accepts a mini-batch in eval mode but cannot be trained on it (a single event
        with BatchNorm), the whole mini-batch is quarantined. Errors of the optimizer, the
        detector, a reaction or a failing device are passed on. The event may be half learned then.

        Args:
            x: one event, or a mini-batch whose first dimension counts the events.
            y: the label or target of the event, or one per event.

        Raises:
            DivergedError: the network has diverged; nothing was changed.
        """
        admitted = self._admission.admit(x, y, self.event_shape)
        tested, rows = admitted.tested, admitted.rows
        overflows = self._overflows + 1 if admitted.overflowed and not rows else 0
        if overflows:
            self._refuse_divergence(overflows)
        self._overflows = overflows
        verdict: Verdict | None = None
        if rows:
            try:
                verdict = self._judged_update(tested.x, tested.y)
            except DataError as error:
                admitted = admitted.refused(str(error))
                tested, rows = admitted.tested, admitted.rows
        rejected = tuple(
            Rejected(self.events + row + 1, reason) for row, reason in admitted.reasons.items()
        )
        self.quarantine.add(rejected)
        self.events += admitted.num_events
        drift = False
        if rows:
            self.event_shape = tested.x.shape[1:]
            self.memory.add(tested.x, tested.y)
            self.rates.observe(tested.loss)
            drift = self._react(tested.errors)
        return LearnResult(
            event=self.events,
            rows=rows,
            output=tested.output,
            loss=tested.loss,
            errors=tested.errors,
            drift=drift,
            verdict=verdict,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            rejected=rejected,
            targets=tested.targets,
        )

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take one optimizer step on a mini-batch, without testing, judging or storing it.

        Raises:
            DataError: the network cannot be trained on the mini-batch; nothing was changed.
        """
        # If training fails, restoring the buffers is enough: parameters change only in the step.
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        with own_randomness(self._device, mix_seed(self._seed, 2 * self.updates)):
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            try:
                with refusals(self._cannot_train_on(x)):
                    self._loss(self.model(x), y).backward()  # type: ignore[no-untyped-call]
            except BaseException:
                with torch.no_grad():
                    for buffer, before in buffers:
                        buffer.copy_(before)
                raise
            self.rates.set(self.updates)
            self.optimizer.step()
        self.updates += 1

    def resize(self, plan: Sequence[Edit]) -> Receipt:
        """Apply a plan of edits to the network and its optimizer.

        New weights are drawn from the learner's own randomness, and the learner's state includes
        the widths. So a restored learner resizes its network in the same way.

        Raises:
            LearnerError: the learner was built without `structure`.
            EditError: the plan cannot be applied; nothing was changed.
        """
        if self.structure is None:
            raise LearnerError(
                "this learner does not know the structure of its network; build it with "
                "structure=trace(model, example_inputs)"
            )
        with own_randomness(self._device, mix_seed(self._seed, self._next_draw())):
            return self.structure.apply(plan, optimizer=self.optimizer)

    def generator(self) -> torch.Generator:
        """Return a new seeded CPU generator at each call; a restored learner gets the same ones."""
        return torch.Generator().manual_seed(mix_seed(self._seed, self._next_draw()))

    def freeze(self) -> Predictor:
        """Return an immutable copy of the present network, which can only predict."""
        return Predictor(
            self.model,
            event_shape=self.event_shape,
            dtype=self._dtype,
            device=self._device,
            events=self.events,
            whole_as_floats=self._whole_numbers.as_floats,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything that determines the learner's future.

        The state consists of dicts, lists, numbers, strings and tensors, so that `save` can write
        it without pickle.
        """
        counters = {
            "events": self.events,
            "updates": self.updates,
            "draws": self._draws,
            "overflows": self._overflows,
            "seed": self._seed,
            "event_shape": None if self.event_shape is None else list(self.event_shape),
        }
        return {"counters": counters, **learner_state(self._parts())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly, bit for bit, as the learner whose `state_dict` returned `state`.

        Build this learner like that one: with the same network, optimizer, loss, detector, guard
        and reactions. The widths, masks and modes that the other network has acquired since it was
        built are restored here.

        Raises:
            CheckpointError: the state belongs to another kind of learner; nothing was changed.
        """
        load_learner_state(self._parts(), state)
        counters = state["counters"]
        self.events, self.updates = counters["events"], counters["updates"]
        self._draws, self._overflows = counters["draws"], counters["overflows"]
        self._seed, shape = counters["seed"], counters["event_shape"]
        self.event_shape = None if shape is None else torch.Size(shape)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle with the masks, which belong to the parameter objects."""
        return {**vars(self), _MASKS: masked_parameters(self.model)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        masks = state.pop(_MASKS)
        vars(self).update(state)
        set_masks(self.model, masks)

    def _parts(self) -> LearnerParts:
        return LearnerParts(
            model=unwrapped(self.model),
            optimizer=self.optimizer,
            structure=self.structure,
            rates=self.rates,
            memory=self.memory,
            quarantine=self.quarantine,
            detector=self.detector,
            guard=self.guard,
            reactions=self.reactions,
        )

    def _next_draw(self) -> int:
        """Return a new odd counter for `mix_seed` at each call; updates use even counters."""
        self._draws += 1
        return 2 * self._draws + 1

    def _outputs(self, x: Tensor) -> Tensor:
        with torch.no_grad(), evaluation_mode(self.model), own_randomness(self._device):
            output: Tensor = self.model(x)
            # The output may be a view of a parameter, and the next update would then change it.
            return output.detach().clone()

    def _react(self, errors: Sequence[float]) -> bool:
        """Pass the errors to the detector, call the reactions and return whether there is drift."""
        drift = False
        if self.detector is not None:
            for error in errors:
                drift |= self.detector.update(error)
        for reaction in self.reactions:
            reaction(self, drift=drift)
        return drift

    def _refuse_divergence(self, overflows: int) -> None:
        """Raise an error if weights are not finite or too many events in a row have overflowed."""
        finite = all(read_numbers([p.isfinite().all() for p in self.model.parameters()]))
        if finite and overflows < _MAX_OVERFLOWS:
            return
        symptom = f"its output was not finite for {overflows} events in a row"
        raise DivergedError(
            f"the network has diverged after {self.updates} updates: "
            f"{symptom if finite else 'weights are not finite'}, so it can no longer "
            "learn. Load the latest snapshot and lower lr, or build the learner with "
            "guard=Guard(), which rolls back updates that cause divergence"
        )

    def _judged_update(self, x: Tensor, y: Tensor) -> Verdict:
        """Update the network and return the guard's verdict.

        Raises:
            DataError: the network cannot learn from the events; nothing was changed.
        """
        self.memory.check(x, y)
        if self.guard is None:
            self.update(x, y)
            return "accepted"
        window = self.memory.latest(self.guard.window)
        if not len(window[0]):
            window = x, y
        unread = self._mean_loss(*window)  # read with the loss after: the host then waits once
        restore = UpdateBackup(self.model, self.optimizer)
        self.update(x, y)
        for halvings in range(self.guard.max_halvings + 1):
            if halvings:
                restore.halve_step()
            # A step after which the network refuses the window is not accepted either.
            with suppress(DataError):
                before, after = read_numbers([unread, self._mean_loss(*window)])
                if self.guard.accepts(before=before, after=after):
                    return "shrunk" if halvings else "accepted"
        restore.roll_back()
        return "rolled back"

    def _mean_loss(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad(), refusals("the network refuses the latest events together"):
            return one_number(self._loss(self._outputs(x), y))

    def _cannot_train_on(self, x: Tensor) -> str:
        mode, shape = "train" if self.model.training else "eval", tuple(x.shape[1:])
        return f"the network cannot be trained on {len(x)} event(s) of shape {shape} in {mode} mode"

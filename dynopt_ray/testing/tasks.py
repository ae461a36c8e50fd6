"""The conformance kit for tasks."""

import torch
from torch import Tensor, nn

from dynopt_ray.structure import Inputs
from dynopt_ray.tasks import Split, Task, call_model
from dynopt_ray.testing.requirement import require


def check_task(task: Task, *, num_steps: int = 5) -> None:
    """Check that a task can be trained on and evaluated, with repeatable results.

    - The model factory must make the same weights for the same seed.
    - The model must accept the example inputs, and training must change its parameters.
    - Every pass over a split must give the same number of rows.
    - Evaluating twice must give the same metrics and change nothing.
    - Training twice with the same seeds must give the same weights. This is checked only if the
      data are arrays, because a loader decides the order of its rows.

    Args:
        task: the task that the plugin's function returned.
        num_steps: the number of optimizer steps to train.

    Raises:
        AssertionError: the task breaks the contract; the message says how.
        DataError: a batch cannot be learned from or does not fit the model.

    Example:
        >>> from dynopt_ray.tasks import load_task
        >>> check_task(load_task("digits-mlp"))
    """
    _check_factory(task)
    _check_example_inputs(task)
    for split in task.splits:
        _check_passes(task, split)
    _check_evaluation(task)
    _check_training(task, num_steps)


def _check_factory(task: Task) -> None:
    before = torch.get_rng_state()
    first, second = task.new_model(seed=1), task.new_model(seed=1)
    require(
        _same(first, second),
        "two models made with the same seed differ: draw weights from torch's generator only",
    )
    require(
        torch.equal(before, torch.get_rng_state()),
        "new_model(seed=…) changes the state of torch's global generator",
    )
    require(
        any(parameter.requires_grad for parameter in first.parameters()),
        "the model has no parameter to train",
    )


def _check_example_inputs(task: Task) -> None:
    inputs = task.example_inputs()
    copy = _copied(inputs)
    output = call_model(task.new_model(seed=1).eval(), inputs)
    require(isinstance(output, Tensor), f"the model returns {type(output).__name__}, not a tensor")
    require(
        _equal(inputs, copy),
        "the model writes to its inputs, so every later pass would differ: leave them unchanged",
    )


def _check_passes(task: Task, split: Split) -> None:
    first, second = ([len(targets) for _, targets in task.batches(split)] for _ in range(2))
    require(sum(first) > 0, f"the {split} split has no rows")
    require(
        sum(first) == sum(second),
        f"one pass over {split} gives {sum(first)} rows, but the next gives {sum(second)}",
    )


def _check_evaluation(task: Task) -> None:
    for split in task.splits:
        model = task.new_model(seed=1)
        first = task.evaluate(model, split)
        require(model.training, "evaluating leaves the model in eval mode: restore its mode")
        require(
            _same(model, task.new_model(seed=1)),
            "evaluating changes the model's weights or buffers",
        )
        second = task.evaluate(model, split)
        require(first == second, f"evaluating {split} twice gives first {first}, then {second}")
        num_rows = sum(len(targets) for _, targets in task.batches(split))
        require(
            first.num_samples == num_rows,
            f"evaluating {split} uses {first.num_samples} rows, but the split has {num_rows}",
        )


def _check_training(task: Task, num_steps: int) -> None:
    models = []
    for _ in range(2):
        model = task.new_model(seed=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            generator = torch.Generator().manual_seed(0)
            stats = task.train_steps(model, optimizer, num_steps, generator=generator)
        require(
            stats.num_steps == num_steps,
            f"training for {num_steps} steps takes {stats.num_steps} steps",
        )
        models.append(model)
    untrained = dict(task.new_model(seed=1).named_parameters())
    require(
        any(not torch.equal(p, untrained[name]) for name, p in models[0].named_parameters()),
        "training changes no parameter: does the loss depend on the model's output?",
    )
    if _has_arrays(task):
        require(_same(*models), "training twice with the same seeds gives different weights")


def _has_arrays(task: Task) -> bool:
    try:
        task.arrays("train")
    except ValueError:
        return False
    return True


def _same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def _copied(inputs: Inputs) -> Inputs:
    if isinstance(inputs, dict):
        return {name: value.clone() for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(value.clone() for value in inputs)
    return inputs.clone()


def _equal(one: Inputs, other: Inputs) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return all(torch.equal(one[name], other[name]) for name in one)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)

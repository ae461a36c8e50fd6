"""The conformance kit of tasks."""

import torch
from torch import Tensor, nn

from dynopt_ray.structure import Inputs
from dynopt_ray.tasks import Split, Task, call_model
from dynopt_ray.testing.requirement import require


def check_task(task: Task, *, num_steps: int = 5) -> None:
    """Check that a task can be trained, judged and repeated.

    Its factory gives the same weights for the same seed; its model takes the example inputs
    and is moved by training; every pass over a split gives the same rows; evaluating twice
    gives the same figures and changes nothing; training twice with the same seeds gives the
    same weights (where data are arrays: a loader keeps its own order).

    Args:
        task: what the plugin's function returns.
        num_steps: optimizer steps to train.

    Raises:
        AssertionError: what it does wrong.
        DataError: batches that cannot be learned from or do not fit the model.

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
        "two models of the same seed differ: draw weights from torch's generator only",
    )
    require(torch.equal(before, torch.get_rng_state()), "new_model(seed=…) moves torch's generator")
    require(
        any(parameter.requires_grad for parameter in first.parameters()),
        "the model has no parameter to train",
    )


def _check_example_inputs(task: Task) -> None:
    inputs = task.example_inputs()
    copy = _copied(inputs)
    output = call_model(task.new_model(seed=1).eval(), inputs)
    require(isinstance(output, Tensor), f"the model returns {type(output).__name__}, not a tensor")
    require(_equal(inputs, copy), "the model writes to its inputs; every later pass would differ")


def _check_passes(task: Task, split: Split) -> None:
    first, second = ([len(targets) for _, targets in task.batches(split)] for _ in range(2))
    require(sum(first) > 0, f"the {split} split has no rows")
    require(
        sum(first) == sum(second),
        f"one pass over {split} gives {sum(first)} rows, the next {sum(second)}",
    )


def _check_evaluation(task: Task) -> None:
    for split in task.splits:
        model = task.new_model(seed=1)
        first = task.evaluate(model, split)
        require(model.training, "evaluating leaves the model in eval mode")
        require(
            _same(model, task.new_model(seed=1)),
            "evaluating changes the model's weights or buffers",
        )
        second = task.evaluate(model, split)
        require(first == second, f"evaluating {split} twice gives {first}, then {second}")
        num_rows = sum(len(targets) for _, targets in task.batches(split))
        require(
            first.num_samples == num_rows,
            f"evaluating {split} takes {first.num_samples} of its {num_rows} rows",
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
        require(stats.num_steps == num_steps, f"{num_steps} steps asked, {stats.num_steps} taken")
        models.append(model)
    untrained = dict(task.new_model(seed=1).named_parameters())
    require(
        any(not torch.equal(p, untrained[name]) for name, p in models[0].named_parameters()),
        "training moves no parameter: does the loss depend on the model's output?",
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

"""A distribution of tasks to train policies on."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

TaskSpec = dict[str, Any]
"""The name and the options of a task, as `load_task` takes them."""

STACKABLE_SIZE = (64, 10)
"""Input columns and outputs that all drawn tasks fit into: `pad_to` of `drawn_tasks`."""

_DIGITS_SHARE, _TEACHER_SHARE = 1 / 4, 1 / 3
# Held-back tasks use the last quarter of the images of digits, other tasks the rest.
_DIGITS_IMAGES = {False: (0, 1347), True: (1347, 1797)}
_FEWEST_IMAGES = 300
_MOST_DEPTH = 4
_SEEDS = 2**31


def drawn_tasks(
    number: int,
    seed: int = 0,
    *,
    held_back: bool = False,
    pad_to: Sequence[int] | None = None,
) -> tuple[TaskSpec, ...]:
    """Draw tasks of different data and networks, to train policies on.

    A quarter are parts of the digits: a range of images, and either all classes or at least three
    of them. The others are generated, with 8 to 64 features, 2 to 10 classes, 500 to 4,000 rows,
    up to 20 % wrong labels, and different redundancy, non-linearity and separation; see
    `generated_mlp`. All networks are MLPs, with hidden widths from 8 to 128. The task at place i
    has 1 + i mod 4 hidden layers, so that each depth occurs equally often.

    Tasks that are held back share neither generated problems nor images with those that are not,
    whatever the seeds: the seeds of generated problems are odd for those held back, and even for
    the others.

    Args:
        number: the number of tasks.
        seed: seed of the draws. More tasks of the same seed begin with the same ones.
        held_back: draw tasks for judging policies during development, instead of for training.
        pad_to: [columns, classes] of all tasks; see `generated_mlp`. With `STACKABLE_SIZE`, tasks
            of equal depth can share one stack of networks. None gives each task its own size.

    Raises:
        ValueError: `number` or `seed` is negative.

    Example:
        >>> from dynopt_ray.tasks import drawn_tasks, load_task
        >>> task = load_task(drawn_tasks(3, seed=0, pad_to=(64, 10))[2])
        >>> task.arrays("train")[0].shape[1], task.num_classes
        (64, 10)
    """
    if number < 0 or seed < 0:
        raise ValueError(f"number is {number} and seed {seed}; neither must be negative")
    padding = {} if pad_to is None else {"pad_to": list(pad_to)}
    tasks = []
    for place in range(number):
        rng = np.random.default_rng([seed, held_back, place])
        draw = _digits if rng.random() < _DIGITS_SHARE else _generated
        hidden = [_between(rng, 8, 128) for _ in range(1 + place % _MOST_DEPTH)]
        tasks.append({**draw(rng, held_back), "hidden": hidden, **padding})
    return tuple(tasks)


def _digits(rng: np.random.Generator, held_back: bool) -> TaskSpec:
    first, end = _DIGITS_IMAGES[held_back]
    size = _between(rng, _FEWEST_IMAGES, end - first)
    start = first + int(rng.integers(end - first - size + 1))
    spec: TaskSpec = {"name": "digits-mlp", "rows": [start, start + size]}
    if rng.random() < 1 / 2:
        num_classes = int(rng.integers(3, 10))
        spec["classes"] = sorted(rng.permutation(10)[:num_classes].tolist())
    return {**spec, "seed": int(rng.integers(_SEEDS))}


def _generated(rng: np.random.Generator, held_back: bool) -> TaskSpec:
    classes = int(rng.integers(2, 11))
    nonlinearity = round(float(rng.random()), 2)
    # Enough columns for up to four clusters per class. More than 16 would leave most classes
    # indistinct, because clusters widen with the number of columns.
    informative = _between(rng, max(4, math.ceil(math.log2(4 * classes))), 16)
    features = _between(rng, max(8, informative), 64)
    is_noisy = rng.random() < 1 / 2
    if rng.random() < _TEACHER_SHARE:
        origin: TaskSpec = {"origin": "teacher"}
    else:
        origin = {"origin": "clusters", "separation": round(float(rng.uniform(1, 3)), 2)}
    return {
        "name": "generated-mlp",
        **origin,
        "features": features,
        "classes": classes,
        "rows": _between(rng, 500, 4_000),
        "label_noise": round(float(rng.uniform(0, 0.2)), 3) if is_noisy else 0.0,
        "redundancy": 1 - informative / features,
        "nonlinearity": nonlinearity,
        "seed": 2 * int(rng.integers(_SEEDS // 2)) + held_back,
    }


def _between(rng: np.random.Generator, least: int, most: int) -> int:
    """Draw a whole number whose logarithm is uniform between two bounds, which are included."""
    return min(most, int(math.exp(rng.uniform(math.log(least), math.log(most + 1)))))

"""The conformance kit of rules, and of policies in general."""

import pickle
from collections.abc import Callable

import numpy as np

from dynopt_ray.policies import FEATURES, LIMIT, ActionKind, ActionMask, Observation, Policy
from dynopt_ray.testing.requirement import require

_NUM_CASES = 300


def check_rule(make: Callable[[], Policy]) -> None:
    """Check that what `make` returns decides as a policy must.

    Whatever it is shown it gives an action that the mask allows; the same observations in the
    same order give the same actions; it does not write to what it is given; and it travels to
    workers by pickle.

    Args:
        make: makes the rule with its default settings; called twice, and both must agree.

    Raises:
        AssertionError: what it does wrong, and in which case.

    Example:
        >>> from dynopt_ray.policies import StalledGrowth
        >>> check_rule(StalledGrowth)
    """
    rule, second = make(), make()
    chosen = [_decide(rule, case, *shown) for case, shown in enumerate(_cases())]
    again = [_decide(second, case, *shown) for case, shown in enumerate(_cases())]
    for case, (one, other) in enumerate(zip(chosen, again, strict=True)):
        require(one == other, f"case {case} gave action {one}, but a second rule gives {other}")
    try:
        copy: Policy = pickle.loads(pickle.dumps(make()))
    except Exception as error:
        raise AssertionError(
            f"it cannot be pickled ({error}); workers need it: use a frozen dataclass"
        ) from error
    moved = [_decide(copy, case, *shown) for case, shown in enumerate(_cases())]
    require(moved == chosen, "its pickled copy decides differently")


def _decide(rule: Policy, case: int, observation: Observation, mask: ActionMask) -> int:
    before = observation.copy(), mask.copy()
    action = rule.act(observation, mask)
    require(
        isinstance(action, int | np.integer) and 0 <= action < len(mask) and bool(mask[action]),
        f"case {case} gives {action!r}, but the mask {mask.tolist()} allows "
        f"{np.flatnonzero(mask).tolist()}: return policies.legal_action(action, mask)",
    )
    require(
        np.array_equal(observation, before[0]) and np.array_equal(mask, before[1]),
        f"case {case}: it writes to its observation or mask, which others read too",
    )
    return int(action)


def _cases() -> list[tuple[Observation, ActionMask]]:
    """Observations all over their space, with masks as ours are.

    Keep and stop are legal, or else, above a budget, something that lowers the cost.
    """
    generator = np.random.default_rng(0)
    observations = generator.uniform(-LIMIT, LIMIT, (_NUM_CASES, len(FEATURES)))
    masks = generator.integers(0, 2, (_NUM_CASES, len(ActionKind))).astype(np.int8)
    masks[:, [ActionKind.KEEP, ActionKind.STOP]] = 1
    masks[::4] = 0
    masks[::4, ActionKind.SHRINK] = 1
    return list(zip(observations.astype(np.float32), masks, strict=True))

"""The conformance kit for rules, and for policies in general."""

import pickle
from collections.abc import Callable

import numpy as np

from dynopt_ray.policies import DEFAULT_ACTIONS, FEATURES, LIMIT, ActionMask, Observation, Policy
from dynopt_ray.testing.requirement import require

_NUM_CASES = 300


def check_rule(make: Callable[[], Policy]) -> None:
    """Check that a rule, or any other policy, meets its contract.

    The rule must:

    - return an action that the mask allows, for every observation;
    - return the same actions for the same observations in the same order;
    - not write to its observation or mask;
    - survive pickling, because it is sent to workers.

    Args:
        make: makes the rule with its default settings; all rules that it makes must agree.

    Raises:
        AssertionError: the rule breaks the contract; the message says how, and in which case.

    Example:
        >>> from dynopt_ray.policies import StalledGrowth
        >>> check_rule(StalledGrowth)
    """
    rule, second = make(), make()
    chosen = [_decide(rule, case, *shown) for case, shown in enumerate(_cases())]
    again = [_decide(second, case, *shown) for case, shown in enumerate(_cases())]
    for case, (one, other) in enumerate(zip(chosen, again, strict=True)):
        require(one == other, f"case {case}: one rule returns action {one}, but another {other}")
    try:
        copy: Policy = pickle.loads(pickle.dumps(make()))
    except Exception as error:
        raise AssertionError(
            f"the rule cannot be pickled ({error}), so it cannot be sent to workers: use a frozen "
            "dataclass"
        ) from error
    moved = [_decide(copy, case, *shown) for case, shown in enumerate(_cases())]
    require(moved == chosen, "the pickled copy of the rule returns other actions")


def _decide(rule: Policy, case: int, observation: Observation, mask: ActionMask) -> int:
    before = observation.copy(), mask.copy()
    action = rule.act(observation, mask)
    require(
        isinstance(action, int | np.integer) and 0 <= action < len(mask) and bool(mask[action]),
        f"case {case}: the rule returns {action!r}, but the mask {mask.tolist()} allows "
        f"{np.flatnonzero(mask).tolist()}: return policies.legal_action(action, mask)",
    )
    require(
        np.array_equal(observation, before[0]) and np.array_equal(mask, before[1]),
        f"case {case}: the rule writes to its observation or mask, which other code reads too",
    )
    return int(action)


def _cases() -> list[tuple[Observation, ActionMask]]:
    """Return random observations from their whole range, with masks as environments give them.

    Either keep and stop are legal, or only shrink, as if the network were above a budget.
    """
    generator = np.random.default_rng(0)
    observations = generator.uniform(-LIMIT, LIMIT, (_NUM_CASES, len(FEATURES)))
    masks = generator.integers(0, 2, (_NUM_CASES, len(DEFAULT_ACTIONS))).astype(np.int8)
    masks[:, [DEFAULT_ACTIONS.place("keep"), DEFAULT_ACTIONS.place("stop")]] = 1
    masks[::4] = 0
    masks[::4, DEFAULT_ACTIONS.place("shrink")] = 1
    return list(zip(observations.astype(np.float32), masks, strict=True))

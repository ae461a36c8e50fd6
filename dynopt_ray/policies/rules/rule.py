"""`Rule`: a policy made from a rule's name or from a plain function."""

from collections.abc import Callable
from typing import Any

from dynopt_ray import plugins
from dynopt_ray.policies.actions import ActionMask
from dynopt_ray.policies.observation import Observation
from dynopt_ray.policies.policy import Policy

Decide = Callable[[Observation, ActionMask], int]


class Rule:
    """A hand-written policy.

    Args:
        rule: the name of a rule (`dynopt plugins` lists them), a path `module:attribute`, or a
            function (observation, action mask) -> place of the chosen action.
        options: arguments of the named rule.

    Raises:
        UnknownNameError: no rule has this name; the message gives the closest match.
        SpecError: the rule has no such option, or refuses its value.
        TypeError: options are given for a function, which takes none.

    Example:
        >>> rule = Rule("useless_shrinking", smallest_share=0.2)
        >>> never = Rule(lambda observation, action_mask: 0)
    """

    def __init__(self, rule: str | Decide, **options: Any) -> None:
        if isinstance(rule, str):
            named: Policy = plugins.build("rules", rule, **options)
            self._decide: Decide = named.act
        elif options:
            raise TypeError(f"Rule: {rule!r} is a function; it takes no options {options}")
        else:
            self._decide = rule

    def act(self, observation: Observation, action_mask: ActionMask) -> int:
        """Return the rule's decision."""
        return int(self._decide(observation, action_mask))

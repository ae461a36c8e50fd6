from typing import Any

import pytest
import torch

from dynopt_ray import plugins
from dynopt_ray.online import ReactingLearner
from dynopt_ray.testing import check_reaction

NAMES = [p.name for p in plugins.plugins("reactions") if p.source == "built in"]


class Reacting:
    """Changes one weight a little on drift and for ten calls after; faults on request."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.left = 0

    @property
    def memory(self) -> int:
        return 0

    def prepare(self, learner: ReactingLearner, /) -> None:
        pass

    @torch.no_grad()
    def __call__(self, learner: ReactingLearner, *, drift: bool) -> None:
        first = next(learner.model.parameters())
        if drift:
            self.left = 10
        if self.left or self.fault == "restless":
            self.left -= 1
            first[0, 0] += 1e-3
        if drift and self.fault == "resetting":
            for parameter in learner.model.parameters():
                parameter.zero_()
        if drift and self.fault == "drawing":
            first[0, 0] += 1e-3 * float(torch.rand(()))

    def state_dict(self) -> dict[str, Any]:
        return {"left": self.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.left = 0 if self.fault == "forgetful" else state["left"]


@pytest.mark.parametrize("name", NAMES)
def test_every_built_in_reaction_passes(name: str) -> None:
    check_reaction(plugins.load("reactions", name))


def test_a_sound_reaction_passes() -> None:
    check_reaction(Reacting)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("restless", "the reaction changes the network although there is no drift"),
        ("resetting", "a reaction must keep what was learned"),
        ("drawing", "continues differently"),
        ("forgetful", "continues differently"),
    ],
)
def test_each_fault_is_found(fault: str, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        check_reaction(lambda: Reacting(fault))

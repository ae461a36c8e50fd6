"""The policy that DQN learns: a dueling network, which runs without Ray."""

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynopt_ray.errors import CheckpointError, DataError, described
from dynopt_ray.policies.actions import ActionMask
from dynopt_ray.policies.observation import Observation
from dynopt_ray.storage import DAMAGE_ERRORS, read_state, write_state

_KIND = "policy"


class DuelingNetwork(nn.Module):
    """Computes Q-values as the state's value plus each action's advantage over the mean advantage.

    Args:
        num_features: length of an observation.
        num_actions: number of Q-values per observation.
        hidden: widths of the hidden layers that value and advantages share; at least one.
        head: width of the hidden layer that value and advantages each have for themselves.

    References:
        Wang et al. 2016, "Dueling Network Architectures", eq. 9.
    """

    def __init__(
        self, num_features: int, num_actions: int, hidden: Sequence[int], head: int
    ) -> None:
        super().__init__()
        self.encoder = _layers([num_features, *hidden])
        self.advantage = nn.Sequential(*_layers([hidden[-1], head]), nn.Linear(head, num_actions))
        self.value = nn.Sequential(*_layers([hidden[-1], head]), nn.Linear(head, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the Q-values (…, actions) of features (…, features)."""
        latent = self.encoder(features)
        return dueling(self.advantage(latent), self.value(latent))


def dueling(advantage: Tensor, value: Tensor) -> Tensor:
    """Return the Q-values of advantages (…, actions) and values (…, 1)."""
    return value + advantage - advantage.mean(-1, keepdim=True)


def masked_q(q_values: Tensor, action_mask: Tensor) -> Tensor:
    """Return Q-values with −inf for illegal actions.

    A large negative number would not do. Code that takes a maximum or samples must not find a
    finite value for an illegal action, because a legal Q-value can be any number.
    """
    return q_values.masked_fill(action_mask == 0, -torch.inf)


class DQNPolicy:
    """Takes the legal action with the largest Q-value; of equal values the first.

    `dynopt_ray.cluster.policy_training.train_policy` and `load` return such policies.

    Args:
        network: computes the Q-values. It is not copied, and is put into evaluation mode.
        hidden: the `hidden` that the network was made with.
        head: the `head` that the network was made with.
        metadata: JSON-able facts about its training, saved with the policy.

    Example:
        >>> import numpy as np
        >>> policy = DQNPolicy(DuelingNetwork(3, 2, [8], 4), hidden=[8], head=4)
        >>> policy.act(np.zeros(3, np.float32), np.array([0, 1], np.int8))
        1
    """

    def __init__(
        self,
        network: DuelingNetwork,
        *,
        hidden: Sequence[int],
        head: int,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network.eval()
        self.hidden = tuple(hidden)
        self.head = head
        self.metadata = dict(metadata or {})

    @property
    def num_features(self) -> int:
        """Length of an observation."""
        return self._size("encoder.0.weight", 1)

    @property
    def num_actions(self) -> int:
        """Length of an action mask."""
        return self._size("advantage.2.weight", 0)

    def q_values(self, observation: Observation, action_mask: ActionMask) -> Tensor:
        """Return the Q-values (actions,), −inf for illegal actions.

        Raises:
            DataError: the observation or mask has another length, or no action is legal.
        """
        if observation.shape != (self.num_features,) or action_mask.shape != (self.num_actions,):
            raise DataError(
                f"the policy takes {self.num_features} features and a mask of {self.num_actions} "
                f"actions, not {observation.shape} and {action_mask.shape}: it was trained on "
                f"another environment"
            )
        if not action_mask.any():
            raise DataError("the action mask allows no action; at least one must be legal")
        with torch.no_grad():
            q_values: Tensor = self.network(torch.from_numpy(np.asarray(observation, np.float32)))
        return masked_q(q_values, torch.from_numpy(np.asarray(action_mask)))

    def act(self, observation: Observation, action_mask: ActionMask) -> int:
        """Return the place of the legal action with the largest Q-value."""
        return int(self.q_values(observation, action_mask).argmax())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy to one safetensors file, completely or not at all.

        Raises:
            CheckpointError: the file could not be written. Any previous file is still there.
        """
        state = {
            "hidden": self.hidden,
            "head": self.head,
            "tensors": self.network.state_dict(),
            "metadata": self.metadata,
        }
        write_state(path, state, kind=_KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DQNPolicy":
        """Read a policy that `save` wrote; nothing in the file is executed.

        Raises:
            CheckpointError: the file is missing, truncated, altered, or not a policy.
        """
        state = read_state(path, kind=_KIND)
        try:
            if state.keys() != {"hidden", "head", "tensors", "metadata"}:
                raise ValueError(f"it has the keys {sorted(state)!s:.200}")
            hidden, head = list(state["hidden"]), state["head"]
            network = _network(hidden, head, dict(state["tensors"]))
            return cls(network, hidden=hidden, head=head, metadata=dict(state["metadata"]))
        except DAMAGE_ERRORS as error:
            raise CheckpointError(
                f"{path} holds a policy that this release cannot read: {described(error):.400}"
            ) from error

    def _size(self, parameter: str, dim: int) -> int:
        return int(self.network.get_parameter(parameter).shape[dim])


def _network(hidden: list[int], head: int, tensors: dict[str, Tensor]) -> DuelingNetwork:
    """Return a network of saved tensors.

    Raises:
        ValueError: they are not those of such a network, or not all finite.
        LookupError: a tensor is missing.
        RuntimeError: a tensor has another shape, or there are more of them.
    """
    widths = [*hidden, head]
    if len(widths) < 2 or len(widths) > len(tensors):
        raise ValueError(f"it has {len(hidden)} hidden layers and {len(tensors)} tensors")
    if not all(type(width) is int and width >= 1 for width in widths):
        raise ValueError(f"its widths are {widths!s:.100}; they must be whole numbers above 0")
    if not all(t.dtype == torch.float32 and t.isfinite().all() for t in tensors.values()):
        raise ValueError("its weights are not finite numbers of type float32")
    features = tensors["encoder.0.weight"].shape[1]
    actions = tensors["advantage.2.weight"].shape[0]
    if not features or not actions:
        raise ValueError("it has no features or no actions")
    # On the meta device no memory is taken for widths that the tensors do not have.
    with torch.device("meta"):
        network = DuelingNetwork(features, actions, hidden, head)
    network.load_state_dict(tensors, assign=True)
    return network


def _layers(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)

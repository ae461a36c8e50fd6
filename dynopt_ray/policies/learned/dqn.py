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
_KEYS = {"hidden", "head", "num_actions", "num_action_features", "tensors", "metadata"}
# Largest number of actions, and of features of each, in a file.
_MOST = 10_000


class DuelingNetwork(nn.Module):
    """Computes Q-values as the state's value plus each action's advantage over the mean advantage.

    If observations have features of each action, all actions share one head, which computes an
    action's advantage from them and from the state. The last of these features is what the action
    is expected to gain right away. The advantage is this gain plus a correction, which is zero
    before training, so an untrained policy takes the action that gains most right away.

    Args:
        num_features: length of an observation.
        num_actions: number of Q-values per observation.
        hidden: widths of the hidden layers that value and advantages share; at least one.
        head: width of the hidden layer that value and advantages each have for themselves.
        num_action_features: number of features of each action, which stand at the end of an
            observation, action after action; 0 if there are none.

    References:
        Wang et al. 2016, "Dueling Network Architectures", eq. 9.
    """

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        hidden: Sequence[int],
        head: int,
        num_action_features: int = 0,
    ) -> None:
        super().__init__()
        self.num_actions, self.num_action_features = num_actions, num_action_features
        self.encoder = _layers([num_features - num_actions * num_action_features, *hidden])
        self.value = nn.Sequential(*_layers([hidden[-1], head]), nn.Linear(head, 1))
        last = nn.Linear(head, 1 if num_action_features else num_actions)
        if num_action_features:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.advantage = nn.Sequential(*_layers([hidden[-1] + num_action_features, head]), last)

    def forward(self, features: Tensor) -> Tensor:
        """Return the Q-values (…, actions) of features (…, features)."""
        sizes = self.num_actions, self.num_action_features
        return dueling(features, self.encoder, self.advantage, self.value, *sizes)


def dueling(
    features: Tensor,
    encoder: nn.Module,
    advantage: nn.Module,
    value: nn.Module,
    num_actions: int,
    num_action_features: int,
) -> Tensor:
    """Return the Q-values (…, actions) that the parts of a `DuelingNetwork` compute."""
    if not num_action_features:
        latent = encoder(features)
        advantages = advantage(latent)
    else:
        own = features.shape[-1] - num_actions * num_action_features
        latent = encoder(features[..., :own])
        shape = (*features.shape[:-1], num_actions, -1)
        of_actions = features[..., own:].reshape(shape)
        seen = torch.cat([latent[..., None, :].expand(shape), of_actions], -1)
        advantages = of_actions[..., -1] + advantage(seen)[..., 0]
    q_values: Tensor = value(latent) + advantages - advantages.mean(-1, keepdim=True)
    return q_values


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
        own = int(self.network.get_parameter("encoder.0.weight").shape[1])
        return own + self.num_actions * self.network.num_action_features

    @property
    def num_actions(self) -> int:
        """Length of an action mask."""
        return self.network.num_actions

    @property
    def previews(self) -> bool:
        """Whether observations must tell what each action would do; see `Preview`."""
        return self.network.num_action_features > 0

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
            "num_actions": self.num_actions,
            "num_action_features": self.network.num_action_features,
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
            if state.keys() != _KEYS:
                raise ValueError(f"it has the keys {sorted(state)!s:.200}")
            hidden, head = list(state["hidden"]), state["head"]
            sizes = state["num_actions"], state["num_action_features"]
            network = _network(hidden, head, *sizes, dict(state["tensors"]))
            return cls(network, hidden=hidden, head=head, metadata=dict(state["metadata"]))
        except DAMAGE_ERRORS as error:
            raise CheckpointError(
                f"{path} holds a policy that this release cannot read: {described(error):.400}"
            ) from error


def _network(
    hidden: list[int],
    head: int,
    num_actions: int,
    num_action_features: int,
    tensors: dict[str, Tensor],
) -> DuelingNetwork:
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
    own = tensors["encoder.0.weight"].shape[1]
    numbers = (num_actions, num_action_features)
    if not all(type(number) is int and 0 <= number <= _MOST for number in numbers):
        raise ValueError(f"it has {num_actions!s:.60} actions of {num_action_features!s:.60}")
    if not own or not num_actions:
        raise ValueError("it has no features or no actions")
    # On the meta device no memory is taken for widths that the tensors do not have.
    with torch.device("meta"):
        features = own + num_actions * num_action_features
        network = DuelingNetwork(features, num_actions, hidden, head, num_action_features)
    network.load_state_dict(tensors, assign=True)
    return network


def _layers(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)

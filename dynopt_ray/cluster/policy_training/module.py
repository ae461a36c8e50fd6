"""The network that RLlib trains: a `DuelingNetwork` that masks illegal actions everywhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_PREDS
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.core.columns import Columns

from dynopt_ray.policies import DuelingNetwork, dueling, masked_q


class MaskedDuelingModule(DefaultDQNTorchRLModule):
    """A dueling DQN on `Dict(observations, action_mask)`.

    RLlib has no action masking for DQN. Acting and learning, with the online and the target
    network, all get their Q-values from `_qf_forward_helper`, so masking them there is enough.
    Exploration is replaced, because RLlib's own takes a legal Q-value of exactly 0 for a masked
    one.
    """

    observation_space: Any
    action_space: Any
    model_config: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["catalog_class"] = None
        # Skip the parent's constructor: it makes a catalog, which does not support these spaces.
        super(DefaultDQNTorchRLModule, self).__init__(*args, **kwargs)

    def setup(self) -> None:
        """Build our network instead of the one that RLlib's catalog would choose for the spaces."""
        self.uses_dueling, self.uses_double_q, self.num_atoms = True, True, 1
        # `StructureDQN` sets this before every round. RLlib's own schedule would depend on a
        # counter that is lost when a run is restored.
        self.epsilon = 1.0
        space = self.observation_space["observations"]
        network = DuelingNetwork(
            space.shape[0],
            int(self.action_space.n),
            self.model_config["hidden"],
            self.model_config["head"],
            self.model_config["num_action_features"],
        )
        self._sizes = network.num_actions, network.num_action_features
        # The parent expects these names: it copies the three parts into the target network.
        self.encoder, self.af, self.vf = network.encoder, network.advantage, network.value

    def _qf_forward_helper(self, batch: Any, encoder: Any, head: Any) -> dict[str, Any]:
        observation = batch[Columns.OBS]
        q_values = dueling(
            observation["observations"], encoder, head["af"], head["vf"], *self._sizes
        )
        return {QF_PREDS: masked_q(q_values, observation["action_mask"])}

    def _forward_exploration(  # type: ignore[override]  # RLlib's own signature differs too
        self, batch: Any, t: int
    ) -> dict[str, Any]:
        del t
        q_values: Any = self.compute_q_values(batch)[QF_PREDS]
        chances = batch[Columns.OBS]["action_mask"].float()
        temperature = self.model_config["temperature"]
        if temperature is not None:
            chances = (q_values / temperature).softmax(1)  # 0 for illegal actions
        drawn = torch.multinomial(chances, num_samples=1)[:, 0]
        explores: Any = torch.rand(len(drawn), device=drawn.device) < self.epsilon
        return {Columns.ACTIONS: torch.where(explores, drawn, q_values.argmax(1))}


def exported_network(
    state: Mapping[str, Any],
    hidden: Sequence[int],
    head: int,
    num_actions: int,
    num_action_features: int,
) -> DuelingNetwork:
    """Make the online network from a module's state, which RLlib returns as arrays by name."""
    names = {"encoder": "encoder", "af": "advantage", "vf": "value"}
    tensors = {
        f"{names[part]}.{rest}": torch.as_tensor(value, device="cpu").clone()
        for key, value in state.items()
        for part, _, rest in [key.partition(".")]
        if part in names
    }
    features = tensors["encoder.0.weight"].shape[1] + num_actions * num_action_features
    network = DuelingNetwork(features, num_actions, hidden, head, num_action_features)
    network.load_state_dict(tensors)
    return network

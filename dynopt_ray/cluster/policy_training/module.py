"""The network that RLlib trains: ours, with illegal actions out of reach everywhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_PREDS
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.core.columns import Columns

from dynopt_ray.policies import DuelingNetwork, dueling, masked_q


class MaskedDuelingModule(DefaultDQNTorchRLModule):
    """A dueling DQN on `Dict(observations, action_mask)`.

    RLlib has no action masking for DQN. Online and target networks, acting and learning all pass
    through `_qf_forward_helper`, so masking there is masking everywhere. Exploration is our own,
    because RLlib's takes a legal Q-value of exactly 0 for a masked one.
    """

    observation_space: Any
    action_space: Any
    model_config: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["catalog_class"] = None
        # Past the parent's constructor, which would have a catalog try these spaces and complain.
        super(DefaultDQNTorchRLModule, self).__init__(*args, **kwargs)

    def setup(self) -> None:
        """Build the network instead of what RLlib's catalog would make of the spaces."""
        self.uses_dueling, self.uses_double_q, self.num_atoms = True, True, 1
        # Set from outside before every round: RLlib's own schedule follows a counter that a
        # restored run has lost.
        self.epsilon = 1.0
        space = self.observation_space["observations"]
        network = DuelingNetwork(
            space.shape[0],
            int(self.action_space.n),
            self.model_config["hidden"],
            self.model_config["head"],
        )
        # Named as the parent knows them: it copies them into target networks.
        self.encoder, self.af, self.vf = network.encoder, network.advantage, network.value

    def _qf_forward_helper(self, batch: Any, encoder: Any, head: Any) -> dict[str, Any]:
        seen = batch[Columns.OBS]
        latent = encoder(seen["observations"])
        q_values = dueling(head["af"](latent), head["vf"](latent))
        return {QF_PREDS: masked_q(q_values, seen["action_mask"])}

    def _forward_exploration(  # type: ignore[override]  # RLlib's own signature differs too
        self, batch: Any, t: int
    ) -> dict[str, Any]:
        del t
        q_values: Any = self.compute_q_values(batch)[QF_PREDS]
        legal = batch[Columns.OBS]["action_mask"].float()
        drawn = torch.multinomial(legal, num_samples=1)[:, 0]
        explores: Any = torch.rand(len(drawn), device=drawn.device) < self.epsilon
        return {Columns.ACTIONS: torch.where(explores, drawn, q_values.argmax(1))}


def exported_network(state: Mapping[str, Any], hidden: Sequence[int], head: int) -> DuelingNetwork:
    """The online network of a module's state, as RLlib hands it out: NumPy arrays by name."""
    names = {"encoder": "encoder", "af": "advantage", "vf": "value"}
    tensors = {
        f"{names[part]}.{rest}": torch.as_tensor(value).clone()
        for key, value in state.items()
        for part, _, rest in [key.partition(".")]
        if part in names
    }
    features = tensors["encoder.0.weight"].shape[1]
    actions = tensors["advantage.2.weight"].shape[0]
    network = DuelingNetwork(features, actions, hidden, head)
    network.load_state_dict(tensors)
    return network

"""Gymnasium environments of dynopt_ray, made by their id.

Example:
    >>> import gymnasium
    >>> env = gymnasium.make("dynopt_envs:dynopt/Architecture-v0", task="digits-mlp", horizon=4)
    >>> observation, info = env.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = env.step(2)
    >>> info["relative_cost"] < 1
    True
"""

import gymnasium

gymnasium.register(
    id="dynopt/Architecture-v0",
    entry_point="dynopt_envs.architecture:ArchitectureEnv",
    vector_entry_point="dynopt_envs.architecture:ArchitectureVectorEnv",
)
gymnasium.register(
    id="dynopt/TabularArchitecture-v0",
    entry_point="dynopt_envs.tabular:TabularArchitectureEnv",
    vector_entry_point="dynopt_envs.tabular:TabularArchitectureVectorEnv",
)

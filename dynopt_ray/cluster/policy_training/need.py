"""What the training of a policy needs from a cluster."""

from dynopt_ray.cluster.sessions import ClusterNeed
from dynopt_ray.policies import DQNSettings


def training_need(settings: DQNSettings) -> ClusterNeed:
    """Return what the training of a policy needs from a cluster: one CPU for each process."""
    runners, learners = settings.num_env_runners, settings.num_learners
    per_runner = settings.gpus_per_env_runner if runners else 0
    per_learner = settings.gpus_per_learner if learners else 0
    return ClusterNeed(
        gpus=max(per_runner, per_learner),
        total_cpus=runners + learners,
        total_gpus=runners * per_runner + learners * per_learner,
    )

"""The families of plugins, and the built-in plugins of each."""

from typing import Literal, get_args

Family = Literal[
    "criteria",
    "schedules",
    "tasks",
    "rules",
    "actions",
    "detectors",
    "lr_controllers",
    "reactions",
    "searchers",
    "schedulers",
    "trackers",
]

FAMILIES: tuple[Family, ...] = get_args(Family)

# One line per built-in plugin: name -> module:attribute.
BUILT_IN: dict[Family, dict[str, str]] = {
    "criteria": {
        "activation": "dynopt_ray.criteria.activation_energy:activation",
        "batchnorm_scale": "dynopt_ray.criteria.batchnorm_scales:batchnorm_scale",
        "fpgm": "dynopt_ray.criteria.fpgm_distances:fpgm",
        "gradient": "dynopt_ray.criteria.gradient_sizes:gradient",
        "hessian": "dynopt_ray.criteria.hessian_diagonal:hessian",
        "lamp": "dynopt_ray.criteria.lamp_scores:lamp",
        "magnitude": "dynopt_ray.criteria.magnitude_norms:magnitude",
        "random": "dynopt_ray.criteria.random_scores:random",
        "reconstruction": "dynopt_ray.criteria.reconstruction_errors:reconstruction",
        "taylor": "dynopt_ray.criteria.taylor_expansion:taylor",
    },
    "schedules": {
        "article_step": "dynopt_ray.schedules:article_step",
        "constant": "dynopt_ray.schedules:constant",
        "cosine": "dynopt_ray.schedules:cosine",
        "exponential": "dynopt_ray.schedules:exponential",
        "linear": "dynopt_ray.schedules:linear",
        "polynomial": "dynopt_ray.schedules:polynomial",
        "rewind": "dynopt_ray.schedules:rewind",
        "sequence": "dynopt_ray.schedules:sequence",
        "step": "dynopt_ray.schedules:step",
        "warmup": "dynopt_ray.schedules:warmup",
    },
    "tasks": {
        "digits-mlp": "dynopt_ray.tasks.builtin.digits:digits_mlp",
        "digits-cnn": "dynopt_ray.tasks.builtin.digits:digits_cnn",
        "digits-transformer": "dynopt_ray.tasks.builtin.digits:digits_transformer",
        "fashion-mnist-mlp": "dynopt_ray.tasks.builtin.fashion_mnist:fashion_mnist_mlp",
        "fashion-mnist-cnn": "dynopt_ray.tasks.builtin.fashion_mnist:fashion_mnist_cnn",
        "generated-mlp": "dynopt_ray.tasks.builtin.generated:generated_mlp",
        "tabular": "dynopt_ray.tasks.builtin.tabular:tabular",
    },
    "rules": {
        "data_sized_widths": "dynopt_ray.policies.rules:DataSizedWidths",
        "stalled_growth": "dynopt_ray.policies.rules:StalledGrowth",
        "useless_shrinking": "dynopt_ray.policies.rules:UselessShrinking",
    },
    "actions": {
        "grow": "dynopt_ray.policies.actions.grow:GrowUnits",
        "keep": "dynopt_ray.policies.actions.keep:Keep",
        "prune": "dynopt_ray.policies.actions.prune:PruneWeights",
        "shrink": "dynopt_ray.policies.actions.shrink:ShrinkUnits",
        "stop": "dynopt_ray.policies.actions.stop:Stop",
    },
    "detectors": {
        "adwin": "dynopt_ray.online.drift.detectors:adwin",
        "ddm": "dynopt_ray.online.drift.detectors:ddm",
        "hddm_a": "dynopt_ray.online.drift.detectors:hddm_a",
        "hddm_w": "dynopt_ray.online.drift.detectors:hddm_w",
        "kswin": "dynopt_ray.online.drift.detectors:kswin",
        "page_hinkley": "dynopt_ray.online.drift.detectors:page_hinkley",
    },
    "lr_controllers": {
        "hypergradient": "dynopt_ray.training.rates.hypergradients:hypergradient",
        "plateau": "dynopt_ray.training.rates.plateau:Plateau",
    },
    "reactions": {
        "grow": "dynopt_ray.online.drift.widen:Widen",
        "raise_rate": "dynopt_ray.online.drift.raise_rate:RaiseRate",
        "replay": "dynopt_ray.online.drift.replay:Replay",
    },
    "searchers": {
        "grid": "dynopt_ray.cluster.searching.searchers:grid",
        "optuna": "dynopt_ray.cluster.searching.searchers:optuna",
        "random": "dynopt_ray.cluster.searching.searchers:random",
    },
    "schedulers": {
        name: f"dynopt_ray.cluster.searching.schedulers:{name}"
        for name in ("asha", "hyperband", "median", "none", "pb2", "pbt")
    },
    "trackers": {
        "mlflow": "dynopt_ray.cluster.tracking.trackers:mlflow",
        "tensorboard": "dynopt_ray.cluster.tracking.trackers:tensorboard",
    },
}

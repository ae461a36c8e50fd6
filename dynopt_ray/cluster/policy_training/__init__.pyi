from .need import training_need
from .trainer import PolicyProgress, train_policy

__all__ = [
    "PolicyProgress",
    "train_policy",
    "training_need",
]

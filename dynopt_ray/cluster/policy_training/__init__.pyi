from .trainer import PolicyProgress, train_policy

__all__ = [
    "PolicyProgress",
    "train_policy",
]

"""Observations: feature vectors of one fixed length for networks of any depth and kind.

Features are relative (to the start, to the group's mean, to the episode's length), so one policy
works for networks of any size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.arrays import FloatArray, IntArray
from dynopt_ray.policies.costs import CHARGED_COSTS
from dynopt_ray.policies.descriptors import KINDS, QUANTILES, Descriptors

Observation = NDArray[np.float32]

LIMIT = 10.0
"""Features are clipped to [-LIMIT, LIMIT]."""

FEATURES: tuple[str, ...] = (
    "width",  # of the group under the cursor: log2(width / width at the start)
    "width_before",  # the same for the previous group; 0 if there is none
    "width_after",  # the same for the next group; 0 if there is none
    "depth",  # position of the group: 0 for the first, 1 for the last
    *(f"kind_{kind}" for kind in KINDS),
    *(f"score_quantile_{quantile}" for quantile in QUANTILES),
    "dead",  # fraction of the group's units
    "redundant",  # fraction of the group's units
    "sparsity",  # fraction of the weights that produce the group's units which is masked
    "cost_share",  # fraction of the network's non-zero weights that lie in the group's parameters
    *(f"cost_{kind}" for kind in CHARGED_COSTS),  # relative to the start
    "mean_width",  # mean of log2(width / width at the start) over all groups
    "smallest_width",  # the minimum of the same
    "largest_width",  # the maximum of the same
    "metric",  # `Metrics.smooth` on validation data
    "metric_change",  # since the previous decision
    "loss",  # log(1 + validation loss)
    "train_loss",  # log(1 + training loss)
    "train_loss_change",  # (training loss - previous one) / previous one
    "loss_gap",  # validation loss - training loss
    "samples_per_weight",  # log10(training samples / non-zero weights)
    "cost_weight",  # λ
    *(f"charge_{kind}" for kind in CHARGED_COSTS),  # weights of the costs that utility charges for
    "steps_left",  # fraction of the episode's decisions that remain
)
"""The names of the features, in order."""


@dataclass(frozen=True, eq=False)
class Performance:
    """The performance of N networks; every field is (N,).

    Attributes:
        metric: the task's metric on validation data.
        smooth: `Metrics.smooth` on validation data, which rewards are computed from.
        loss: validation loss.
        train_loss: mean loss of the latest training batches, each computed before its step. At
            the start, the loss on the training split.
    """

    metric: FloatArray
    smooth: FloatArray
    loss: FloatArray
    train_loss: FloatArray

    def copy(self) -> "Performance":
        """Return a copy with its own arrays."""
        return Performance(*(getattr(self, field.name).copy() for field in fields(self)))

    def replaced(self, members: Sequence[int], new: "Performance") -> "Performance":
        """Return a copy in which some members have the figures of `new`."""
        copy = self.copy()
        for field in fields(self):
            getattr(copy, field.name)[members] = getattr(new, field.name)[members]
        return copy


@dataclass(frozen=True, eq=False)
class EpisodeProgress:
    """The progress of training and of the episode, for N networks.

    Attributes:
        now: the networks' performance.
        before: their performance at the previous decision.
        num_samples: number of training rows, one for all or (N,).
        cost_weight: λ, (N,).
        charges: weights of `CHARGED_COSTS` in the cost that utility charges for, (N, 4).
        steps_left: fraction of the episode's decisions that remain, (N,).
    """

    now: Performance
    before: Performance
    num_samples: int | IntArray
    cost_weight: FloatArray
    charges: FloatArray
    steps_left: FloatArray


def observe(networks: Descriptors, progress: EpisodeProgress) -> Observation:
    """Return the features of N networks.

    Returns:
        float32 (N, len(FEATURES)), each in [-LIMIT, LIMIT].
    """
    # Logarithms, because losing 1 of 4 units matters as much as losing 16 of 64.
    relative = np.log2(networks.widths / networks.start_widths)
    rows, last = np.arange(len(relative)), relative.shape[1] - 1
    cursor = networks.cursor
    now, before = progress.now, progress.before
    change = now.train_loss - before.train_loss
    columns = [
        relative[rows, cursor],
        np.where(cursor > 0, relative[rows, np.maximum(cursor - 1, 0)], 0.0),
        np.where(cursor < last, relative[rows, np.minimum(cursor + 1, last)], 0.0),
        cursor / max(last, 1),
        *np.eye(len(KINDS))[networks.kind].T,
        *networks.quantiles.T,
        networks.dead,
        networks.redundant,
        1 - networks.num_unmasked / np.maximum(networks.num_weights, 1),
        networks.cost_share,
        *networks.costs.T,
        relative.mean(1),
        relative.min(1),
        relative.max(1),
        now.smooth,
        now.smooth - before.smooth,
        np.log1p(now.loss),
        np.log1p(now.train_loss),
        change / np.maximum(before.train_loss, 1e-6),
        now.loss - now.train_loss,
        np.log10(progress.num_samples / np.maximum(networks.nonzero, 1)),
        progress.cost_weight,
        *progress.charges.T,
        progress.steps_left,
    ]
    return np.asarray(np.clip(np.stack(columns, axis=1), -LIMIT, LIMIT), dtype=np.float32)


def feature(observation: Observation, name: str) -> float:
    """Return one feature of an observation by name."""
    return float(observation[FEATURES.index(name)])

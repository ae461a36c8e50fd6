"""What a policy sees: a vector of fixed length, whatever the depth and kind of the network.

Every feature is relative (to the start, to the group's mean, to the episode's length), so one
policy serves networks of any size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dynopt_ray.arrays import FloatArray
from dynopt_ray.policies.descriptors import KINDS, QUANTILES, Descriptors
from dynopt_ray.policies.utilities import CHARGED_COSTS

Observation = NDArray[np.float32]

LIMIT = 10.0
"""Features are clipped to [-LIMIT, LIMIT]."""

FEATURES: tuple[str, ...] = (
    "width",  # log2 of the width of the group under the cursor over its width at the start
    "width_before",  # of the group before it, likewise; 0 where there is none
    "width_after",
    "depth",  # of the group: 0 is the first, 1 the last
    *(f"kind_{kind}" for kind in KINDS),
    *(f"score_quantile_{quantile}" for quantile in QUANTILES),
    "dead",  # share of the group's units
    "redundant",
    "sparsity",  # share of the weights that make its units which are masked
    "cost_share",  # share of the network's non-zero weights in the group's tensors
    *(f"cost_{kind}" for kind in CHARGED_COSTS),  # relative to the start
    "mean_width",  # over all groups, likewise
    "smallest_width",
    "largest_width",
    "metric",  # `Metrics.smooth` on validation data
    "metric_change",  # since the decision before
    "loss",  # log(1 + validation loss)
    "train_loss",  # log(1 + training loss)
    "train_loss_change",  # (this training loss - the one before) / the one before
    "loss_gap",  # validation loss - training loss
    "samples_per_weight",  # log10(training samples / non-zero weights)
    "cost_weight",  # λ
    "steps_left",  # share of the episode
)
"""The features in order."""


@dataclass(frozen=True, eq=False)
class Performance:
    """How N networks do; all (N,).

    Attributes:
        metric: the task's metric on validation data.
        smooth: the smoother `Metrics.smooth`, which rewards are made of.
        loss: validation loss.
        train_loss: mean loss over the latest training batches, each before its step; at the start
            the loss on the training split.
    """

    metric: FloatArray
    smooth: FloatArray
    loss: FloatArray
    train_loss: FloatArray

    def copy(self) -> "Performance":
        """The same figures in arrays of their own."""
        return Performance(*(getattr(self, field.name).copy() for field in fields(self)))

    def replaced(self, members: Sequence[int], new: "Performance") -> "Performance":
        """A copy in which some members have their figures of `new`."""
        copy = self.copy()
        for field in fields(self):
            getattr(copy, field.name)[members] = getattr(new, field.name)[members]
        return copy


@dataclass(frozen=True, eq=False)
class EpisodeProgress:
    """How training and the episode stand.

    Attributes:
        now: how the networks do.
        before: how they did at the decision before.
        num_samples: training rows.
        cost_weight: λ, (N,).
        steps_left: fraction of the episode's decisions that remain, (N,).
    """

    now: Performance
    before: Performance
    num_samples: int
    cost_weight: FloatArray
    steps_left: FloatArray


def observe(reading: Descriptors, progress: EpisodeProgress) -> Observation:
    """The features of N networks.

    Returns:
        float32 (N, len(FEATURES)), each in [-LIMIT, LIMIT].
    """
    # Logarithms: one unit less of four matters as much as sixteen less of sixty-four.
    relative = np.log2(reading.widths / reading.start_widths)
    rows, last = np.arange(len(relative)), relative.shape[1] - 1
    cursor = reading.cursor
    now, before = progress.now, progress.before
    change = now.train_loss - before.train_loss
    columns = [
        relative[rows, cursor],
        np.where(cursor > 0, relative[rows, np.maximum(cursor - 1, 0)], 0.0),
        np.where(cursor < last, relative[rows, np.minimum(cursor + 1, last)], 0.0),
        cursor / max(last, 1),
        *np.eye(len(KINDS))[reading.kind].T,
        *reading.quantiles.T,
        reading.dead,
        reading.redundant,
        1 - reading.num_unmasked / np.maximum(reading.num_weights, 1),
        reading.cost_share,
        *reading.costs.T,
        relative.mean(1),
        relative.min(1),
        relative.max(1),
        now.smooth,
        now.smooth - before.smooth,
        np.log1p(now.loss),
        np.log1p(now.train_loss),
        change / np.maximum(before.train_loss, 1e-6),
        now.loss - now.train_loss,
        np.log10(progress.num_samples / np.maximum(reading.nonzero, 1)),
        progress.cost_weight,
        progress.steps_left,
    ]
    return np.asarray(np.clip(np.stack(columns, axis=1), -LIMIT, LIMIT), dtype=np.float32)


def feature(observation: Observation, name: str) -> float:
    """One feature of an observation by name."""
    return float(observation[FEATURES.index(name)])

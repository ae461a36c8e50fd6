"""N:M sparsity: of every M weights for neighbouring inputs, at most N are not zero."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynopt_ray.errors import EditError
from dynopt_ray.structure import Graph

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Pattern:
    """At most `keep` non-zero weights of each output for every `of` neighbouring inputs.

    Sparse tensor cores compute the pattern 2:4 twice as fast.

    References:
        Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks".
    """

    keep: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Pattern | None":
        """Return the pattern that a text such as "2:4" describes, or None if it describes none.

        Raises:
            ValueError: the pattern keeps nothing or everything.
        """
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if found is None:
            return None
        keep, of = map(int, found.groups())
        if not 0 < keep < of:
            raise ValueError(
                f"granularity {text!r} keeps {keep} of {of} weights; it must keep some and not all"
            )
        return cls(keep, of)

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"

    def must_go(self, scores: Tensor, alive: Tensor, dim: int) -> Tensor:
        """Return the weights to remove: in each block, all but the `keep` most important ones.

        Args:
            scores: the scores of a parameter's weights, in its shape.
            alive: bool tensor of the same shape, False for weights that are masked already.
            dim: the dimension of the inputs; its size is a multiple of `of`.

        Returns:
            Bool tensor of the same shape.
        """
        ranked = torch.unflatten(scores.masked_fill(~alive, -torch.inf), dim, (-1, self.of))
        # Stable, so that of equal scores the last are removed.
        order = ranked.argsort(dim=dim + 1, descending=True, stable=True)
        rank = order.argsort(dim=dim + 1)
        return torch.flatten(rank >= self.keep, dim, dim + 1) & alive

    def dims(self, graph: Graph, weights: Mapping[str, Tensor]) -> dict[str, int]:
        """Return name -> dimension of the inputs, for each weight with whole blocks of inputs.

        Raises:
            EditError: there is no such weight.
        """
        dims = {name: _input_dim(graph, name) for name in weights if name in graph.consumers}
        fitting = {
            name: dim
            for name, (dim, num_groups) in dims.items()
            if dim is not None and weights[name].shape[dim] % (self.of * num_groups) == 0
        }
        if not fitting:
            raise EditError(
                f"granularity {str(self)!r}: no linear layer or convolution reads a multiple of "
                f"{self.of} inputs. Use granularity='weight'"
            )
        return fitting


def _input_dim(graph: Graph, name: str) -> tuple[int | None, int]:
    """Return the dimension of a weight's inputs, and the number of groups along it.

    The dimension is None if the inputs do not lie along exactly one. Only a transposed convolution
    has the inputs of all its groups concatenated along this dimension; otherwise the number is 1.
    """
    dims = graph.consumers[name][0].dims
    if dims is None:
        owner = graph.model.get_submodule(name.rpartition(".")[0])
        return (0, owner.groups) if isinstance(owner, _TRANSPOSED) else (1, 1)
    inner = [d for d, at in enumerate(dims.weight) if at in dims.input and at not in dims.output]
    return (inner[0] if len(inner) == 1 else None), 1

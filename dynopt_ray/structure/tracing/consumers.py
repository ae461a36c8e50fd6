"""The uses of weights that compensation can refit, as one pass finds them."""

from dataclasses import replace

from torch import Tensor

from dynopt_ray.structure.units import Consumer, Record


class Consumers:
    """The consumers of one pass, and the tensors that they made.

    Args:
        record: the record of the pass, to which consumers are added.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._makers: dict[int, Consumer] = {}

    def add(self, consumer: Consumer, out: Tensor) -> None:
        """Note that a weight made `out`."""
        self._makers[id(out)] = consumer
        self._record.consumers[consumer.weight].append(consumer)

    def forget(self, out: Tensor) -> None:
        """Take back `add`: `out` is not the plain result of a product."""
        consumer = self._makers.pop(id(out), None)
        if consumer is not None:
            uses = self._record.consumers[consumer.weight]
            uses.remove(consumer)
            if not uses:
                del self._record.consumers[consumer.weight]

    def absorb(
        self,
        source: Tensor,
        out: Tensor,
        dim: int,
        *,
        bias: str | None = None,
        mean: str | None = None,
    ) -> None:
        """Note the bias or mean along `dim` that can absorb a constant change of `source`."""
        consumer = self._makers.get(id(source))
        if consumer is None or consumer.bias is not None or not (bias or mean):
            return
        if consumer.makes(dim):
            uses = self._record.consumers[consumer.weight]
            absorbing = replace(consumer, bias=bias, mean=mean)
            uses[uses.index(consumer)] = self._makers[id(out)] = absorbing

"""Compensation: refitting layers that lost inputs or weights, so that they keep their old outputs.

A consumer (a linear layer, a convolution or another product with a weight) computes y = W x + b in
the original network. In the cut network it reads only the inputs that remain, or some of its
weights are masked. Its inputs x' have changed a little as well, because layers before it were cut,
too. But removed inputs can largely be predicted from the remaining ones, so other weights on the
remaining inputs can nearly reproduce y. They are found by ridge regression:

    W', b' = argmin E|y - W' x' - b'|² + ridge |W' - W_K|²

W_K is the part of W that remains, and W' is zero wherever a mask holds it at zero. The regression
is solved for the correction W' - W_K, which has to explain the residual: y minus the output of the
consumer in the cut network. Small corrections are preferred, so inputs that hardly vary on these
batches do not get arbitrary weights.

Consumers are refitted in forward order. Each is fitted to its outputs in the original network, on
the inputs that it gets after the consumers before it were refitted. So it also corrects the errors
that those leave. A pass of all batches for each consumer would take time quadratic in the depth.
Instead, each batch runs through the cut network once, and all batches side by side: a batch that
reaches a consumer that is not refitted yet pauses until the others have arrived there. Their rows
are the inputs of the regression, and all batches continue with the new weight. Another pass of each
batch, through the original network, runs ahead and records the outputs. It pauses, too, if it has
recorded much that is not used yet. Batches beyond those that suffice for a consumer do not wait
there; they begin when a later consumer needs them.

A weight that is used several times in a pass is fitted to all its uses, but the later ones come
after the first. So in networks with such weights a third pass goes ahead of the last one. At each
use it refits the weight to this use and the earlier ones, and so finds the rows of the later ones.

What is where: `side_by_side` lets passes pause, `operations` finds the uses of weights in a pass,
`original_network` records outputs, `cut_network` waits and compares, `cut_passes` moves the batches
from one consumer to the next, `correction` adds up the rows of a weight (as `moments`), and
`regression` and `masked_regression` solve.

The constant b' needs a place that serves only this weight: its bias, or else the running mean of
the BatchNorm that follows. Without one, the regression has no intercept. The ridge is chosen by
fitting on every second row and judging on the others; the final fit uses all rows. All of this
needs only means and second moments, summed over batches. What takes memory are the paused passes:
each keeps what the rest of it reads, usually the input of the consumer and of the shortcuts around
it. If this is much, fewer batches take part and give more rows each.

References:
    He, Zhang, Sun 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section
    3.2 ("whole model pruning"); here in closed form, with an intercept, and drawn towards W_K.
    Frantar, Alistarh 2022, "Optimal Brain Compression", which solves the same problem for each row
    of a masked weight; here it is solved after the mask has been chosen.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from torch import Tensor

from dynopt_ray.errors import EditError
from dynopt_ray.structure.preserve import within
from dynopt_ray.structure.refit.before_and_after import BeforeAndAfter
from dynopt_ray.structure.refit.cut_network import CutNetwork
from dynopt_ray.structure.refit.cut_passes import CutPasses
from dynopt_ray.structure.refit.original_network import OriginalNetwork
from dynopt_ray.structure.refit.side_by_side import Turns
from dynopt_ray.structure.tracing import Inputs, buffers_kept, uncompiled, undisturbed
from dynopt_ray.structure.units import Consumer

# Bytes of outputs of the original network that are kept at one time.
_MOST_BYTES = 2**28


def compensated(
    cut: BeforeAndAfter,
    consumers: Mapping[str, Sequence[Consumer]],
    lossy: Collection[str],
    batches: Sequence[Inputs],
) -> dict[str, Tensor]:
    """Return new values of all weights, biases and running means to refit, in the new layout.

    Args:
        cut: the network before and after the change. It runs in evaluation mode and is not
            changed.
        consumers: the uses of each weight, in forward order.
        lossy: the weights that lose inputs or entries; those among the consumers are refitted.
        batches: inputs of the network.

    Raises:
        EditError: the network does not run on a batch, no batch reaches a consumer, or a
            consumer's inputs or outputs are not finite.
    """
    names = [name for name in consumers if name in lossy]
    if not names:
        return {}
    kept = buffers_kept(cut.model, cut.old), buffers_kept(cut.model, cut.new)
    with undisturbed(cut.model, training=False), uncompiled(), kept[0], kept[1]:
        turns = Turns(cut.model, batches)
        network = CutNetwork(cut, consumers, names, turns)
        original = OriginalNetwork(cut.old, network.uses, turns, _MOST_BYTES)
        try:
            return within(turns, partial(_refitted, network, original, turns))
        except RuntimeError as error:
            if isinstance(error, EditError) or "functorch" not in str(error):
                raise
            raise EditError(
                "compensate: the forward pass uses transforms of torch.func (vmap, grad), in which "
                "it cannot be paused; use compensate=None"
            ) from error


def _refitted(network: CutNetwork, original: OriginalNetwork, turns: Turns) -> dict[str, Tensor]:
    """Refit all weights and return the new values."""
    ahead, last = CutPasses(network, original, turns), CutPasses(network, original, turns)

    def refit(name: str) -> bool:
        if len(network.uses[name]) > 1 and not ahead.num_passed[name]:
            ahead.refit_at_all_uses(name)
        # What the passes ahead found at the first use, the last ones find there again.
        network.corrections[name].forget_first_use()
        return last.refit_at((name, 0))

    pending = list(network.uses)
    while pending:
        # A batch that takes another path may reach a later weight first.
        refitted = next((name for name in pending if refit(name)), None)
        if refitted is None:
            raise EditError(
                f"compensate: the batches never reach {pending[0]!r}, so it cannot be refitted. "
                "Pass batches that use it, or compensate=None"
            )
        pending.remove(refitted)
        original.finish((refitted, 0))
        for passes in (ahead, last):
            passes.let_pass(refitted)
        if all(len(network.uses[name]) == 1 or ahead.num_passed[name] for name in pending):
            ahead.stop()
    return network.refitted()

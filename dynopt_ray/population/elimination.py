"""The `reconstruction` criterion for all units of all members at once.

Units are eliminated as for a real network (see `criteria.reconstruction_errors`), member by member
in the same order. A unit of an MLP is one input of the next layer, so its cost is
|W_u|² / (C⁻¹)_uu.

Shapes: P members, R rows, U units of a layer, O outputs of the next one, S units removed per step.
"""

import torch
from torch import Tensor

from dynopt_ray.arrays import IntArray
from dynopt_ray.criteria import LEAST_RIDGE
from dynopt_ray.population.stack import Population
from dynopt_ray.structure import RIDGE
from dynopt_ray.transfers import array_to_device


def unit_errors(population: Population, x: Tensor, y: Tensor, *, most_steps: int) -> list[Tensor]:
    """Score the units of every hidden layer, as `reconstruction` does with the same settings.

    Args:
        population: the networks; they are not changed.
        x: training rows, (rows, features); (P, rows, features) if each member has its own.
        y: their classes, (rows,); (P, rows) if each member has its own.
        most_steps: the units of a layer are eliminated in this many steps, or up to twice as many.

    Returns:
        Scores (P, U) for each hidden layer, float32; infinite at padding.
    """
    with torch.no_grad():
        outputs, inputs = _passed(population, x)
        sensitivities = _sensitivities(population, outputs, y)
        return [
            _eliminated(
                inputs[layer + 1],
                population.weights[layer + 1] * sensitivities[layer + 1].sqrt()[:, :, None],
                population.widths[:, layer],
                most_steps,
            )
            for layer in range(population.num_layers - 1)
        ]


def _passed(population: Population, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return what each layer gives before its ReLU, and what it reads, (P, R, …) each."""
    outputs, inputs = [], [x.expand(len(population), -1, -1)]
    for weight, bias in zip(population.weights, population.biases, strict=True):
        outputs.append(torch.baddbmm(bias[:, None], inputs[-1], weight.transpose(1, 2)))
        inputs.append(outputs[-1].relu())
    return outputs, inputs


def _sensitivities(population: Population, outputs: list[Tensor], y: Tensor) -> list[Tensor]:
    """Return half the mean square of the loss's gradient to each output of each layer, (P, O)."""
    slope = outputs[-1].softmax(2)
    chosen = y.expand(len(population), -1)[:, :, None]
    slope.scatter_add_(2, chosen, -torch.ones_like(chosen, dtype=slope.dtype))
    found = [slope.square().mean(1) / 2]
    for layer in range(population.num_layers - 1, 0, -1):
        slope = (slope @ population.weights[layer]) * (outputs[layer - 1] > 0)
        found.insert(0, slope.square().mean(1) / 2)
    return found


def _eliminated(x_PRU: Tensor, weight_POU: Tensor, width_P: IntArray, most_steps: int) -> Tensor:
    """Eliminate the units of one layer; the highest cost up to each unit's turn, (P, U)."""
    widths = array_to_device(width_P, x_PRU.device)
    inverse_PUU = _inverse(x_PRU, widths)
    weight_POU = weight_POU.float()
    gone_PU = torch.arange(x_PRU.shape[2], device=x_PRU.device) >= widths[:, None]
    scores_PU = torch.full_like(gone_PU, torch.inf, dtype=torch.float32)
    dearest_P1 = scores_PU.new_zeros(len(widths), 1)
    per_step_P = (widths // most_steps).clamp(min=1)
    num_each = max(1, int(width_P.max()) // most_steps)
    num_steps = max(-(-int(w) // max(1, int(w) // most_steps)) for w in width_P)
    for step in range(num_steps):
        own_PU = inverse_PUU.diagonal(dim1=1, dim2=2)
        costs_PU = weight_POU.square().sum(1) / own_PU
        costs_PU = costs_PU.masked_fill(gone_PU, torch.inf)
        least_PS, first_PS = costs_PU.topk(num_each, largest=False)
        place_S = torch.arange(num_each, device=widths.device)
        goes_PS = (place_S < per_step_P[:, None]) & ~gone_PU.gather(1, first_PS)
        highest_PS = torch.fmax(least_PS, dearest_P1).cummax(1).values
        kept_PS = scores_PU.gather(1, first_PS)
        scores_PU.scatter_(1, first_PS, torch.where(goes_PS, highest_PS, kept_PS))
        dearest_P1 = highest_PS.masked_fill(~goes_PS, 0).amax(1, keepdim=True).fmax(dearest_P1)
        gone_PU.scatter_(1, first_PS, goes_PS | gone_PU.gather(1, first_PS))
        if step < num_steps - 1:
            _remove(inverse_PUU, weight_POU, first_PS, goes_PS)
    return scores_PU


def _remove(inverse_PUU: Tensor, weight_POU: Tensor, first_PS: Tensor, goes_PS: Tensor) -> None:
    """Remove units in place, and refit the weights of the others."""
    size = inverse_PUU.shape[1]
    index_PUS = first_PS[:, None].expand(-1, size, -1)
    columns_PUS = inverse_PUU.gather(2, index_PUS) * goes_PS[:, None]
    block_PSS = columns_PUS.gather(1, first_PS[:, :, None].expand(-1, -1, first_PS.shape[1]))
    block_PSS = block_PSS * goes_PS[:, :, None]
    block_PSS = block_PSS + torch.diag_embed((~goes_PS).to(block_PSS.dtype))
    if first_PS.shape[1] == 1:
        solved_PSU = columns_PUS.transpose(1, 2) / block_PSS
    else:
        solved_PSU, _ = torch.linalg.solve_ex(block_PSS, columns_PUS.transpose(1, 2))
    outputs = weight_POU.shape[1]
    read_POS = weight_POU.gather(2, first_PS[:, None].expand(-1, outputs, -1)) * goes_PS[:, None]
    weight_POU.baddbmm_(read_POS, solved_PSU, alpha=-1)
    inverse_PUU.baddbmm_(columns_PUS, solved_PSU, alpha=-1)


def _inverse(x_PRU: Tensor, widths: Tensor) -> Tensor:
    """Return the inverses of the second moments about the mean, with a ridge, (P, U, U)."""
    centred_PRU = x_PRU - x_PRU.mean(1, keepdim=True)
    second_PUU = (centred_PRU.transpose(1, 2) @ centred_PRU).double() / x_PRU.shape[1]
    own_PU = second_PUU.diagonal(dim1=1, dim2=2)
    mean_P1 = (own_PU.sum(1) / widths)[:, None]
    ridge_PU = RIDGE * own_PU + LEAST_RIDGE * mean_P1.clamp(min=1e-12)
    ridged_PUU = (second_PUU + torch.diag_embed(ridge_PU)).float()
    factor_PUU, _ = torch.linalg.cholesky_ex(ridged_PUU)
    return torch.cholesky_inverse(factor_PUU)

"""Units are grouped by what all of them go through, not by what the first one does."""

import pytest
import torch
from torch import nn

from dynopt_ray.structure import named_tensors
from dynopt_ray.structure.tracing.passes import trace_passes
from dynopt_ray.structure.units import Grouping, IdArray, Record, group_units

WEIGHT, READER = ("weight", 0), ("reader", 1)


def six_units() -> tuple[Record, IdArray]:
    """Return a record of six units that one parameter makes and another reads, and their ids."""
    record = Record({})
    made, read = record.own(WEIGHT, 6), record.own(READER, 6)
    record.ties.append((made, read))
    record.roles.update({WEIGHT: "out", READER: "in"})
    record.first_use.update({"weight": 0, "reader": 1})
    return record, made


def grouped(note: str, *, units: slice) -> Grouping:
    """Group six units, some of which are added to a list of the record."""
    record, made = six_units()
    record.pass_through([made], [])
    if note == "mixed":
        record.mixed.append((made[units], "it depends on their number"))
    else:
        ids: list[IdArray] = getattr(record, note)
        ids.append(made[units])
    return group_units(record)


@pytest.mark.parametrize("units", [slice(0, 4), slice(2, 6)])
def test_units_that_are_read_are_grouped_without_the_others(units: slice) -> None:
    record, made = six_units()
    record.pass_through([made[units]], [])
    grouping = group_units(record)
    (group,) = grouping.groups
    assert group.width == 4
    assert grouping.fixed["weight"] == "not reached by this example"


def test_units_that_a_result_carries_on_are_not_read_yet() -> None:
    record, made = six_units()
    record.pass_through([made], [made[:2]])
    record.pass_through([made[:2]], [made[:2].copy()])
    assert [group.width for group in group_units(record).groups] == [4]


@pytest.mark.parametrize("units", [slice(0, 3), slice(3, 6), slice(4, 6)])
def test_growth_is_inexact_if_any_unit_meets_others(units: slice) -> None:
    (group,) = grouped("mixed", units=units).groups
    assert group.width == 6
    assert not group.exact_growth
    assert group.why_inexact == "it depends on their number"
    assert group.min_width == 1


@pytest.mark.parametrize("units", [slice(0, 1), slice(5, 6)])
def test_two_units_stay_if_any_unit_needs_another(units: slice) -> None:
    (group,) = grouped("never_one", units=units).groups
    assert group.exact_growth
    assert group.min_width == 2


@pytest.mark.parametrize("model", [nn.LSTM(3, 4, proj_size=2), nn.GRU(3, 4), nn.RNN(3, 4)])
def test_a_trace_without_costs_notes_no_work(model: nn.Module) -> None:
    meta = torch.device("meta")
    passes = trace_passes(
        model,
        torch.empty(5, 2, 3, device=meta),
        {name: tensor.to(meta) for name, tensor in named_tensors(model).items()},
        heads="heads",
        device=meta,
        with_costs=False,
    )
    assert not passes.record.work
    assert not passes.record.made

"""Search spaces: the meaning of plain data, and the errors for wrong ones."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynopt_ray.cluster.searching.space import Choice, Range, Space
from dynopt_ray.errors import SpecError

NAN = float("nan")
LR = [
    {"name": "cosine", "initial": {"low": 1e-3, "high": 0.1, "log": True}},
    {"name": "step", "initial": 0.1, "gamma": [0.5, 0.1]},
]


def test_dimensions_have_dotted_names() -> None:
    space = Space.parse({"lr": LR, "rounds": {"low": 1, "high": 3}, "fixed": 7, "n": {"a": [1, 2]}})
    dimensions = space.dimensions
    assert dimensions["rounds"] == Range(1, 3)
    assert dimensions["lr.0.initial"] == Range(1e-3, 0.1, log=True)
    assert dimensions["lr.1.gamma"] == Choice((0.5, 0.1))
    assert dimensions["n.a"] == Choice((1, 2))
    assert list(dimensions) == ["lr", "lr.0.initial", "lr.1.gamma", "rounds", "n.a"]


def test_a_point_takes_the_middle_of_ranges_that_are_not_given() -> None:
    rates = {"low": 1e-4, "high": 1e-2, "log": True}
    space = Space.parse({"n": {"low": 1, "high": 6}, "lr": [0.1, {"initial": rates}]})
    assert space.point({"n": 6}) == {"n": 6, "lr": 0, "lr.1.initial": pytest.approx(1e-3)}
    assert space.point({"lr.1.initial": 2e-3}) == {"n": 3, "lr": 1, "lr.1.initial": 2e-3}


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"n": 2.5}, "n: 2.5 is not a whole number in the range from 1 to 6"),
        ({"n": True}, "n: True is not a whole number"),
        ({"lr": 1.0}, "lr: 1.0 is not a whole option index from 0 to 2"),
        ({"lr": 0, "lr.1.initial": 2e-3}, "lr.1.initial is not used if lr is 0"),
        (
            {"lr.1.initial": 2e-3, "lr.2.gamma": 1},
            "lr.2.gamma and lr.1.initial are in different options of lr",
        ),
    ],
)
def test_points_outside_the_space_are_refused(point: dict[str, Any], message: str) -> None:
    rates = {"low": 1e-4, "high": 1e-2, "log": True}
    options = [0.1, {"initial": rates}, {"gamma": [0.5, 0.1]}]
    space = Space.parse({"n": {"low": 1, "high": 6}, "lr": options})
    with pytest.raises(SpecError, match=f"^{re.escape(message)}"):
        space.point(point)


def test_decoding_follows_the_chosen_option() -> None:
    space = Space.parse({"lr": LR, "rounds": {"low": 1, "high": 3}})
    flat = {"lr": 1, "lr.0.initial": 0.05, "lr.1.gamma": 1, "rounds": 2}
    assert space.decode(flat) == {
        "lr": {"name": "step", "initial": 0.1, "gamma": 0.1},
        "rounds": 2,
    }
    assert space.decode({**flat, "lr": 0})["lr"] == {"name": "cosine", "initial": 0.05}


def test_options_that_are_lists_are_values() -> None:
    assert Space.parse({"hidden": [[8, 8], [16]]}).decode({"hidden": 0}) == {"hidden": [8, 8]}


def test_a_range_with_integer_ends_has_only_whole_numbers() -> None:
    space = Space.parse({"n": {"low": 1, "high": 8}, "x": {"low": 1, "high": 8.0}})
    decoded = space.decode({"n": 3, "x": 3})
    assert (type(decoded["n"]), type(decoded["x"])) == (int, float)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_probes_cover_every_option_and_both_ends(sizes: list[int]) -> None:
    space = Space.parse(
        {"r": {"low": 0, "high": 9}, **{f"c{i}": list(range(n)) for i, n in enumerate(sizes)}}
    )
    probes = list(space.probes())
    assert {probe["r"] for probe in probes} == {0, 9}
    for index, size in enumerate(sizes):
        assert {probe[f"c{index}"] for probe in probes} == set(range(size))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"a": 1}, "space: nothing to choose, every value is fixed; give a list of options or a "
         "range such as {low: 0.1, high: 0.9}"),
        ({"a": []}, "space.a: an empty list has no option to choose; give at least one"),
        ({"a": {"low": 1, "hihg": 2}}, "space.a.hihg: a range has no 'hihg'. Did you mean 'high'? "
         "Known: low, high, log."),
        ({"a": {"low": 1}}, "space.a.high: must be a finite number, not None"),
        ({"a": {"low": "1", "high": 2}}, "space.a.low: must be a finite number, not '1'"),
        ({"a": {"low": True, "high": 2}}, "space.a.low: must be a finite number, not True"),
        ({"a": {"low": 0.0, "high": float("inf")}}, "space.a.high: must be a finite number, not "
         "inf"),
        ({"a": {"low": NAN, "high": 1.0}}, "space.a.low: must be a finite number, not nan"),
        ({"a": {"low": 2, "high": 2}}, "space.a: low is 2 and high 2; low must be less than high"),
        ({"a": {"low": 0, "high": 2, "log": True}}, "space.a: low is 0; a logarithmic range must "
         "begin above 0"),
        ({"a": {"low": 1, "high": 2, "log": "yes"}}, "space.a.log: must be true or false, not "
         "'yes'"),
        ({"a": [{"b": []}]}, "space.a.0.b: an empty list has no option to choose; give at least "
         "one"),
    ],
)  # fmt: skip
def test_errors_name_the_mistake_and_its_place(space: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Space.parse(space)
    assert str(caught.value) == message


def test_a_grid_has_every_configuration_once() -> None:
    lr = [{"name": "step", "gamma": [0.5, 0.1]}, {"name": "cosine", "final": [0.0, 0.1, 0.2]}, 0.1]
    space = Space.parse({"lr": lr, "fixed": 7, "n": {"a": [1, 2]}})
    configs = [space.decode(flat) for flat in space.grid()]
    assert len(configs) == (2 + 3 + 1) * 2
    assert len({repr(config) for config in configs}) == len(configs)
    assert configs[0] == {"lr": {"name": "step", "gamma": 0.5}, "fixed": 7, "n": {"a": 1}}
    assert configs[1]["n"] == {"a": 2}
    assert configs[-1] == {"lr": 0.1, "fixed": 7, "n": {"a": 2}}


def test_a_grid_has_no_ranges() -> None:
    space = Space.parse({"a": [1, {"name": "x", "b": {"low": 0, "high": 1}}]})
    with pytest.raises(
        SpecError, match=r"^space.a.1.b: a grid cannot try all values of a range; list the values"
    ):
        space.grid()


def test_a_list_of_spaces_is_their_union() -> None:
    space = Space.parse([{"a": [1, 2], "b": 0}, {"a": {"low": 3.0, "high": 4.0}}])
    assert list(space.dimensions) == ["member", "member.0.a", "member.1.a"]
    flat = {"member": 1, "member.0.a": 0, "member.1.a": 3.5}
    assert space.decode(flat) == {"a": 3.5}
    assert space.decode({**flat, "member": 0}) == {"a": 1, "b": 0}
    assert {"a": 4.0} in space.probes()
    whole = Space.parse([{"a": [1, 2], "b": 0}, {"a": 3}])
    assert [whole.decode(flat)["a"] for flat in whole.grid()] == [1, 2, 3]


def test_names_with_dots_are_names_like_others() -> None:
    space = Space.parse({"a": [1, {"x": [5, 6]}], "a.b": [3, 4], "a.0": [7, 8]})
    assert list(space.dimensions) == ["a", "a.1.x", "a.b", "a.0"]
    assert space.point({"a.b": 1}) == {"a": 0, "a.1.x": 0, "a.b": 1, "a.0": 0}
    assert space.decode(space.point({"a.0": 1})) == {"a": 1, "a.b": 3, "a.0": 8}
    assert len(list(space.probes())) == 8
    assert space.size == 12


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"b": [1, 2]}, "a.b": [3, 4]}, "space: 'a.b' names two ranges or choices"),
        ({"a": [{"b": [1, 2]}], "a.0.b": [3, 4]}, "space: 'a.0.b' names two ranges or choices"),
        ({"a/b": [1, 2]}, "space: the name 'a/b' contains a slash"),
    ],
)
def test_names_that_are_not_unique_are_refused(tree: Any, message: str) -> None:
    with pytest.raises(SpecError, match=f"^{re.escape(message)}"):
        Space.parse(tree)

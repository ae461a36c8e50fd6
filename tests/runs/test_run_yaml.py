"""Reading and writing the YAML of specs."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynopt_ray.errors import SpecError
from dynopt_ray.runs.spec.yaml_text import dump, parse

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1.5e3", 1500.0), ("-2E+4", -2e4), (".5e1", 5.0), ("10_000", 10_000)],
)
def test_numbers_are_numbers(text: str, value: float) -> None:
    assert parse(f"lr: {text}", source="here") == {"lr": value}


@pytest.mark.parametrize("text", ["'1e-3'", "e3", "1e", "1.2.3"])
def test_text_stays_text(text: str) -> None:
    assert isinstance(parse(f"lr: {text}", source="here")["lr"], str)


@given(plain)
@settings(max_examples=50)
def test_what_is_dumped_is_read_back(value: Any) -> None:
    assert parse(dump({"value": value}), source="here") == {"value": value}


@pytest.mark.parametrize("text", ["a\x85b", "\u2028", "a\nb", "λ = 0.3", "\ufeff", " ", "\t"])
def test_odd_characters_survive(text: str) -> None:
    assert parse(dump({text: text}), source="here") == {text: text}


def test_infinity_survives() -> None:
    assert parse(dump({"value": math.inf}), source="here") == {"value": math.inf}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\nb: 2\na: 3",
            "s.yaml, line 3, column 1: not valid YAML: key 'a' is given twice (first in line 1)",
        ),
        (
            "a: b: c",
            "s.yaml, line 1, column 5: not valid YAML: mapping values are not allowed here",
        ),
        (
            "? [1, 2]\n: 3",
            "s.yaml, line 1, column 3: not valid YAML: key [1, 2] is not a plain value",
        ),
        (
            "!!python/object:os.system 1",
            "s.yaml, line 1, column 1: not valid YAML: could not determine a constructor for the "
            "tag 'tag:yaml.org,2002:python/object:os.system'",
        ),
    ],
)
def test_mistakes_are_reported_with_line_and_column(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text, source="s.yaml")
    assert str(caught.value) == message


def test_control_characters_are_refused() -> None:
    with pytest.raises(SpecError, match=r"^s\.yaml: not valid YAML: unacceptable character"):
        parse("\x00", source="s.yaml")

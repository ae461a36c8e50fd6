"""Reading and writing the YAML of specs."""

import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynopt_ray.errors import SpecError
from dynopt_ray.runs.spec.yaml_text import dump, parse

whole = st.integers(min_value=-(2**63), max_value=2**63 - 1)
plain = st.recursive(
    st.none() | st.booleans() | whole | st.floats(allow_nan=False) | st.text(),
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
@settings(max_examples=50, deadline=None)
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


def test_values_of_other_types_stay_text() -> None:
    data = parse("{day: 2024-01-31, wrong: 2024-13-45, sign: =}", source="here")
    assert data == {"day": "2024-01-31", "wrong": "2024-13-45", "sign": "="}


def repeated(times: int) -> str:
    """A text of `times` lines that stands for 9 ** times values."""
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, times)]
    return "\n".join(["a0: &a0 [x]", *lines])


DEEP = "values are nested more than 40 deep"
MANY = "more than 20,000 values, counting repetitions"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: !!int foo", "'foo' is no value of type int"),
        ('a: !!int ""', "'' is no value of type int"),
        ("a: !!bool foo", "'foo' is no value of type bool"),
        ("a: !!float foo", "'foo' is no value of type float"),
        ("!!map [a]", "expected a mapping node, but found sequence"),
        ("a: !!binary aGk=", "could not determine a constructor for the tag"),
        ("a: !!timestamp 2024-01-31", "could not determine a constructor for the tag"),
        ("a: " + "9" * 5_000, "is no value of type int"),
        ("a: 0x" + "f" * 100_000, "a whole number is beyond 64 bits"),
        ("a: 9223372036854775808", "a whole number is beyond 64 bits"),
        (r'a: "\ud800"', r"'\ud800' is half of a character"),
        ("[" * 5_000, DEEP),
        ("{a: " * 5_000, DEEP),
        ("- " * 5_000, DEEP),
        ("a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 500)), DEEP),
        (repeated(20), MANY),
        ("[" + "x, " * 20_000 + "]", MANY),
        ("&a [*a]", "alias 'a' is part of what it refers to"),
        ("&a {k: *a}", "alias 'a' is part of what it refers to"),
        ("a: &a {x: 1}\nb:\n  <<: *a", "merge keys (<<) are not known; write the keys out"),
        ("k" * 100_000 + ": 1", "mapping values are not allowed here"),
    ],
)
def test_hostile_texts_are_refused_quickly_and_briefly(text: str, problem: str) -> None:
    start = time.perf_counter()
    with pytest.raises(SpecError) as caught:
        parse(text, source="s.yaml")
    assert time.perf_counter() - start < 10
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 1_000


def test_a_text_of_megabytes_is_refused() -> None:
    with pytest.raises(SpecError, match="has 1,048,577 characters; at most 1,048,576 are read"):
        parse("#" * (2**20 + 1), source="s.yaml")


def test_aliases_repeat_values() -> None:
    assert parse("{a: &a [1, {b: 2}], c: *a}", source="here") == {
        "a": [1, {"b": 2}],
        "c": [1, {"b": 2}],
    }

"""Messages: bounded in length, whatever they quote, and raised in bounded time."""

import time

import pytest

from dynopt_ray.errors import (
    DataError,
    UnknownNameError,
    described,
    did_you_mean,
    listed,
    short,
    shortened,
)


def test_every_message_is_bounded_and_keeps_its_ends() -> None:
    message = str(DataError(f"the start {'x' * 10**6} the end"))
    assert len(message) == 4_000
    assert message.startswith("the start x")
    assert message.endswith("x the end")
    assert str(DataError("as it is")) == "as it is"


def test_described_errors_are_bounded_too() -> None:
    assert len(described(ValueError("x" * 10**6))) == 4_000


def test_an_error_that_cannot_say_what_it_is_does_not_replace_itself() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    assert described(MuteError()) == "MuteError: (its message cannot be shown: RuntimeError)"


def test_an_unknown_name_among_many_long_ones() -> None:
    names = [f"column {number} {'x' * 5_000}" for number in range(20_000)]
    start = time.perf_counter()
    message = str(UnknownNameError("column", "y" * 10**6, names))
    assert time.perf_counter() - start < 5
    assert "… and 19,950 more" in message
    assert len(message) <= 4_000


def test_the_closest_name_is_still_found() -> None:
    assert did_you_mean("taylr", ["magnitude", "taylor", "z" * 10**6]) == " Did you mean 'taylor'?"
    assert did_you_mean("x" * 10**5, ["x" * 10**5]) == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("abc", "'abc'"),
        ({"name": ["a", 1.5]}, "{'name': ['a', 1.5]}"),
    ],
)
def test_values_in_messages(value: object, shown: str) -> None:
    assert short(value) == shown


def test_numbers_of_thousands_of_digits_in_messages() -> None:
    assert short(10**5_000) == "a int that is too long to show"


def test_deep_and_wide_values_in_messages_are_bounded() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep] * 9
    assert len(short(deep)) <= 400
    assert len(short("x" * 10**6)) <= 60


def test_texts_and_lists_of_names_are_shortened() -> None:
    assert shortened("abcdefghijkl", 8) == "abc … kl"
    assert listed(["a", "b"]) == "a, b"

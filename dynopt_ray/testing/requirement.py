"""The assertion that the conformance kits use."""


def require(condition: bool, message: str) -> None:
    """Fail a conformance check if a condition does not hold.

    Unlike `assert`, it is not switched off by `python -O`.

    Raises:
        AssertionError: the condition does not hold.
    """
    if not condition:
        raise AssertionError(message)

"""How the conformance kits fail."""


def require(condition: bool, message: str) -> None:
    """Fail a conformance check: `assert`, but not switched off by `python -O`.

    Raises:
        AssertionError: the condition does not hold.
    """
    if not condition:
        raise AssertionError(message)

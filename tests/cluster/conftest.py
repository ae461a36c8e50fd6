import secrets
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def token() -> Iterator[None]:
    """Set a token for the tests, so that none is written to the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield

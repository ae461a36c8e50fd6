import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Networks this small only lose by threads, and most on a machine that is busy."""
    torch.set_num_threads(1)

"""One thread: the models are tiny, and threads would only wait for each other."""

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For all of them."""

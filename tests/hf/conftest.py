"""What these tests share: torch in one thread, so that equal runs give equal numbers."""

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For all of them."""

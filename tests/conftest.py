"""For all tests: prepared data is kept in a folder of its own, which is gone afterwards; never in the user's cache.

And Ctrl-C means what it means in a terminal: a shell ignores it for what it starts in the background (`make test &`),
and the commands that tests interrupt would inherit that, and run on for hours.
"""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator

import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_IS_OURS = "SARTOR_TESTS_CACHE" not in os.environ  # the processes of a parallel run share the first one's
if _IS_OURS:
    os.environ["SARTOR_TESTS_CACHE"] = tempfile.mkdtemp(prefix="sartor-tests-")
os.environ["HF_DATASETS_CACHE"] = os.environ["SARTOR_TESTS_CACHE"]
if "datasets" in sys.modules:  # it has read the variable already
    sys.modules["datasets"].config.HF_DATASETS_CACHE = os.environ["SARTOR_TESTS_CACHE"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch in one thread: equal runs give equal numbers, and tiny models don't wait for threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """torch.compile without programs of other tests."""
    import torch

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _IS_OURS:
        shutil.rmtree(os.environ["SARTOR_TESTS_CACHE"], ignore_errors=True)

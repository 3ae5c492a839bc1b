"""What a command changes in its process, such as what libraries print, and puts back when it ends.

A program may call several commands, and go on with its own work.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Within the block these environment variables are set; those that the user has set stay as they are."""
    ours = [name for name in values if name not in os.environ]
    for name in ours:
        os.environ[name] = values[name]
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without transformers' bars for loading and saving, which would stand between our lines."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging

    had_bars, hub_had_none = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_bars:
            with warnings.catch_warnings():  # huggingface_hub warns where a variable of the user's forbids bars
                warnings.simplefilter("ignore")
                logging.enable_progress_bar()  # the Hub's too
        if hub_had_none:
            disable_progress_bars()


@contextmanager
def errors_alone() -> Iterator[None]:
    """Without bars, and of transformers' messages only the errors."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    with warnings.catch_warnings(), no_progress_bars():
        warnings.simplefilter("ignore", FutureWarning)
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)

"""What a trainer says aloud.

Through the logger `sartor`, to standard error unless the program set up logging itself.  Where that cannot be written,
the line is lost and not the run.
"""

from __future__ import annotations

import logging

from sartor.masking import masked_text
from sartor.run import output

logger = logging.getLogger("sartor")


class _Aloud(logging.Handler):
    """To what standard error is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        output.say(self.format(record))


def say(message: str) -> None:
    """Tell the user one thing; secrets in it are masked."""
    if not logger.handlers and not logging.getLogger().handlers:
        handler = _Aloud()
        handler.setFormatter(logging.Formatter("sartor: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    logger.info(masked_text(message))

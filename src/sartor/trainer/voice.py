"""What a trainer says aloud.

Through the logger `sartor`, to standard error unless the program set up logging itself.
"""

from __future__ import annotations

import logging

from sartor.masking import masked_text

logger = logging.getLogger("sartor")


def say(message: str) -> None:
    """Tell the user one thing; secrets in it are masked."""
    if not logger.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("sartor: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    logger.info(masked_text(message))

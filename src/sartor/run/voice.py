"""What a run says aloud.

Through the logger `sartor`, to standard error unless the program set up logging itself.  Where that cannot be written,
the line is lost and not the run.
"""

from __future__ import annotations

import logging

from sartor.masking import masked_text
from sartor.run import output

logger = logging.getLogger("sartor")


def say(message: str) -> None:
    """Tell the user one thing; secrets in it are masked.

    Logging stays as the program has it: a handler of ours would say everything twice where it is set up later.
    """
    if logger.hasHandlers():
        logger.info(masked_text(message))
    elif logger.level <= logging.INFO and logger.manager.disable < logging.INFO:
        output.say(f"sartor: {masked_text(message)}")

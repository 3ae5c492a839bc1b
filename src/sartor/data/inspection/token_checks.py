"""What is conspicuous in the tokens of examples: nothing trained, answers that never end, texts that begin twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sartor.data.inspection.ledger import Ledger
from sartor.data.inspection.reading import Batch
from sartor.data.inspection.record import Severity
from sartor.data.targets.audit import rows_with_two_bos, rows_without_end

SHOWN_TOKENS = 8
"""Of the end of a row that has none."""


def look_at_tokens(batch: Batch, tokenizer: Any, ends: Sequence[int], ledger: Ledger) -> None:
    """Note what is conspicuous in the examples of a batch; `audit.Audit.check_tokens` counts by the same functions.

    Args:
        ends: tokens at which generation stops, see `audit.end_ids`.
    """
    encoded, places = batch.encoded, batch.example_places
    for number in rows_with_two_bos(encoded, tokenizer.bos_token_id):
        ledger.see(
            "doubled_bos",
            Severity.WARNING,
            f"The row begins with {tokenizer.bos_token} twice; where the model is used there is one.",
            "Leave it out of the rows, or of the chat template.",
            where=places[number],
            shown="",
        )
    for number in np.flatnonzero(~encoded.has_labels).tolist():
        ledger.see(
            "untrained_rows",
            Severity.WARNING,
            "No token of the row is trained, whatever its length.",
            "Leave it out, unless you know why: look at its labels, its weights and the options of the loss.",
            where=places[number],
            shown="",
        )
    for number in rows_without_end(encoded, ends):
        start, end = encoded.offsets[number : number + 2].tolist()
        last = encoded.input_ids[max(start, end - SHOWN_TOKENS) : end].tolist()
        ledger.see(
            "no_end_trained",
            Severity.WARNING,
            "No token that ends an answer is trained: the model may not learn to stop.",
            "Set eos_token to the token that ends an answer in the chat template; see also append_eot.",
            where=places[number],
            shown=f"it ends with {tokenizer.decode(last)!r}",
        )

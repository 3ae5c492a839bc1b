"""What is conspicuous in the tokens of examples: nothing trained, answers that never end, texts that begin twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sartor.data.inspection.ledger import Ledger
from sartor.data.inspection.reading import Batch
from sartor.data.inspection.record import Severity
from sartor.data.targets.audit import end_ids, rows_with_two_bos, rows_without_end

SHOWN_TOKENS = 8
"""Of the end of a row that has none."""


class TokenChecks:
    """Looks at the examples of one data set; what `audit.Audit.check_tokens` counts is found by its functions."""

    def __init__(self, ledger: Ledger, tokenizer: Any, end_tokens: Sequence[str]) -> None:
        self._ledger = ledger
        self._tokenizer = tokenizer
        self._end_ids = end_ids(tokenizer, end_tokens)

    def look(self, batch: Batch) -> None:
        """One batch."""
        encoded, places = batch.encoded, batch.example_places
        for number in rows_with_two_bos(encoded, self._tokenizer.bos_token_id):
            self._ledger.see(
                "doubled_bos",
                Severity.WARNING,
                f"The row begins with {self._tokenizer.bos_token} twice; where the model is used there is one.",
                "Leave it out of the rows, or of the chat template.",
                where=places[number],
                shown="",
            )
        for number in np.flatnonzero(~encoded.has_labels).tolist():
            self._ledger.see(
                "untrained_rows",
                Severity.WARNING,
                "No token of the row is trained, whatever its length.",
                "Leave it out, unless you know why: look at its labels, its weights and the options of the loss.",
                where=places[number],
                shown="",
            )
        for number in rows_without_end(encoded, self._end_ids):
            start, end = encoded.offsets[number : number + 2].tolist()
            last = encoded.input_ids[max(start, end - SHOWN_TOKENS) : end].tolist()
            self._ledger.see(
                "no_end_trained",
                Severity.WARNING,
                "No token that ends an answer is trained: the model may not learn to stop.",
                "Set eos_token to the token that ends an answer in the chat template; see also append_eot.",
                where=places[number],
                shown=f"it ends with {self._tokenizer.decode(last)!r}",
            )

"""What is conspicuous in the tokens of examples: nothing trained, answers that never end, texts that begin twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sartor.data.inspection.ledger import Ledger
from sartor.data.inspection.reading import Batch
from sartor.data.inspection.record import Severity

SHOWN_TOKENS = 8
"""Of the end of a row that has none."""


class TokenChecks:
    """Looks at the examples of one data set, under the same conditions as `audit.Audit.check_tokens`."""

    def __init__(self, ledger: Ledger, tokenizer: Any, end_tokens: Sequence[str]) -> None:
        self._ledger = ledger
        self._tokenizer = tokenizer
        ends = [token for token in (tokenizer.eos_token, *end_tokens) if token]
        self._end_ids = [tokenizer.convert_tokens_to_ids(token) for token in dict.fromkeys(ends)]

    def look(self, batch: Batch) -> None:
        """One batch."""
        encoded, places = batch.encoded, batch.example_places
        bos, starts = self._tokenizer.bos_token_id, encoded.offsets[:-1]
        if bos is not None:
            long = np.flatnonzero(encoded.lengths > 1)
            first, second = encoded.input_ids[starts[long]], encoded.input_ids[starts[long] + 1]
            for number in long[(first == bos) & (second == bos)].tolist():
                self._ledger.see(
                    "doubled_bos",
                    Severity.WARNING,
                    f"The row begins with {self._tokenizer.bos_token} twice; where the model is used there is one.",
                    "Leave it out of the rows, or of the chat template.",
                    where=places[number],
                    shown="",
                )
        for number in np.flatnonzero(encoded.targets_per_row == 0).tolist():
            self._ledger.see(
                "untrained_rows",
                Severity.WARNING,
                "No token of the row is trained, whatever its length.",
                "Leave it out, unless you know why: look at its labels, its weights and the options of the loss.",
                where=places[number],
                shown="",
            )
        if self._end_ids:
            ends = encoded.count(np.isin(encoded.labels, self._end_ids))
            for number in np.flatnonzero((ends == 0) & (encoded.targets_per_row > 0)).tolist():
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

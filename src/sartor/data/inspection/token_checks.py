"""What is conspicuous in the tokens of examples: answers that never end, and texts that begin twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sartor.data.inspection.ledger import Ledger
from sartor.data.inspection.reading import Batch
from sartor.data.inspection.record import Severity


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
        if self._end_ids:
            ends = encoded.count(np.isin(encoded.labels, self._end_ids))
            for number in np.flatnonzero((ends == 0) & (encoded.targets_per_row > 0)).tolist():
                last = encoded.input_ids[encoded.offsets[number + 1] - 8 : encoded.offsets[number + 1]].tolist()
                self._ledger.see(
                    "no_end_trained",
                    Severity.WARNING,
                    "No token that ends an answer is trained: the model may not learn to stop.",
                    "Set eos_token to the token that ends an answer in the chat template; see also append_eot.",
                    where=places[number],
                    shown=f"it ends with {self._tokenizer.decode(last)!r}",
                )

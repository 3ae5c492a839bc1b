"""What a length would cut is what cutting there costs, and the suggestion follows from it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.data.encoding.cutting import cut
from sartor.data.inspection.lengths import LengthTally
from sartor.data.inspection.record import Lengths, share
from sartor.data.reading.places import Places
from sartor.data.tokens.table import TokenRows
from sartor.records import DataSettings


def rows_of(*lengths: int, first_target: int = 0) -> TokenRows:
    """Rows of these lengths, trained from token `first_target` on."""
    targets = [[int(place >= first_target) for place in range(length)] for length in lengths]
    return TokenRows.from_targets([list(range(length)) for length in lengths], targets)


def counted(
    rows: TokenRows, max_length: int | None = None, mode: str = "keep_start", context: int | None = None
) -> Lengths:
    tally = LengthTally(max_length, mode, context)
    tally.add(rows.take(np.arange(0, len(rows) // 2)))
    tally.add(rows.take(np.arange(len(rows) // 2, len(rows))))
    return tally.result()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=12),
    st.integers(0, 30),
    st.integers(1, 100),
    st.sampled_from(["keep_start", "keep_end"]),
)
def test_every_level_costs_what_cutting_there_costs(
    lengths: list[int], first_target: int, max_length: int, mode: str
) -> None:
    rows = rows_of(*lengths, first_target=first_target)
    places = Places.of_texts([f"a, row {number}" for number in range(len(rows))])
    for level in counted(rows, max_length, mode).cuts:
        options = DataSettings(max_length=level.max_length, truncation_mode=mode)
        _, _, cost = cut(rows, places, options, name="train", is_tokenized=True)
        assert level.num_rows == cost["num_truncated_rows"]
        assert level.num_tokens == cost["num_truncated_tokens"]
        assert level.num_targets == cost["num_truncated_targets"]
        without = int(np.count_nonzero(~rows.has_labels))
        assert level.num_emptied == cost["num_dropped_rows"] - without


def test_the_length_asked_for_is_among_the_levels_and_so_is_one_that_cuts_nothing() -> None:
    lengths = counted(rows_of(10, 300, 700), 333)
    assert [cut.max_length for cut in lengths.cuts] == [64, 128, 256, 333, 512, 1024]
    assert [cut.num_rows for cut in lengths.cuts] == [2, 2, 2, 1, 1, 0]


def test_rows_that_would_lose_all_targets_are_counted() -> None:
    (level,) = [cut for cut in counted(rows_of(10, 50, first_target=20)).cuts if cut.max_length == 16]
    assert (level.num_rows, level.num_emptied) == (1, 1)


def test_quantiles_are_lengths_that_occur() -> None:
    lengths = counted(rows_of(1, 2, 3, 100))
    assert lengths.quantiles(lengths.tokens) == {"min": 1, "p50": 3, "p90": 100, "p99": 100, "max": 100}
    assert counted(rows_of()).quantiles(lengths.tokens[:0]) == {}


@pytest.mark.parametrize(
    ("lengths", "context", "suggested", "reason"),
    [
        ([100] * 50 + [130], None, 192, "nothing is cut: the longest row has 130 tokens"),
        ([100] * 5000 + [9000], None, 9024, "shorter lengths lose targets"),
        ([100] * 20_000 + [1000], None, 128, "1 row of 20,001 is longer"),
        ([100] * 50 + [3000], 2048, 2048, "the model sees 2,048 tokens at once; 1 row of 51"),
        ([2000] * 50, 2040, 2040, "nothing is cut"),
    ],
)
def test_the_suggestion_and_its_reason(lengths: list[int], context: int | None, suggested: int, reason: str) -> None:
    arrays = np.array(lengths), np.array(lengths)
    rows = TokenRows(
        np.zeros(arrays[0].sum(), np.int32),
        np.zeros(arrays[0].sum(), np.int32),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(arrays[0])]),
    )
    made = counted(rows, context=context).suggestion
    assert made is not None
    assert (made.max_length, reason in made.reason) == (suggested, True), made


def test_a_share_that_is_there_is_never_called_nothing() -> None:
    said = [share(0, 9), share(1, 10_000), share(1, 8), share(3, 3)]
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in said] == ["0.0 %", "under 0.1 %", "12.5 %", "100.0 %"]

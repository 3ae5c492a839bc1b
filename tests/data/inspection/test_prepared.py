"""The views show every token and the lengths of what is trained."""

from typing import Any

import pytest
from datasets import Dataset

from sartor.data.encoding.encode import prepare
from sartor.data.inspection.prepared import describe, example_of, length_histogram, lengths_of, visible
from sartor.data.inspection.sample import tokens_of
from sartor.data.inspection.terminal import coloured, plain
from sartor.errors import DataError
from sartor.records import DataSettings, DataSummary, Example, RowFormat

MESSAGES = [{"role": "user", "content": "Wie?\nSo"}, {"role": "assistant", "content": "größer 漢字"}]


def test_trained_text_is_enclosed_and_line_ends_and_special_tokens_are_seen(tokenizer: Any) -> None:
    data = prepare(Dataset.from_list([{"messages": MESSAGES}]), tokenizer, DataSettings(assistant_only_loss=True))
    assert plain(tokens_of(example_of(data.dataset, 0), tokenizer)) == (
        "<|im_start|>user↵\nWie?↵\nSo<|im_end|>↵\n<|im_start|>assistant↵\n⟦größer 漢字<|im_end|>⟧↵\n"
    )


def test_colours_tell_trained_from_untrained(tokenizer: Any) -> None:
    data = prepare(Dataset.from_list([{"messages": MESSAGES}]), tokenizer, DataSettings(assistant_only_loss=True))
    text = coloured(tokens_of(example_of(data.dataset, 0), tokenizer))
    bright = [text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style)]
    dim = [text.plain[span.start : span.end] for span in text.spans if "dim" in str(span.style)]
    assert bright == ["größer 漢字", "<|im_end|>"]
    assert sum(map(len, bright + dim)) == len(text.plain)


def test_tokens_join_to_the_whole_text_wherever_targets_begin(tokenizer: Any) -> None:
    ids = tokenizer(" größer 漢字 boots")["input_ids"]
    whole = tokenizer.decode(ids)
    for start in range(len(ids) + 1):
        example = Example(ids, [-100] * start + ids[start:])
        assert "".join(token.text for token in tokens_of(example, tokenizer)) == whole


def test_lengths_are_those_of_the_ids(tokenizer: Any) -> None:
    rows = [{"input_ids": list(range(n))} for n in (3, 1, 7)]
    data = prepare(Dataset.from_list(rows), tokenizer, DataSettings(max_length=5))
    assert lengths_of(data.dataset).tolist() == [3, 1, 5]
    assert lengths_of(data.dataset.select([2, 0])).tolist() == [5, 3]
    with pytest.raises(DataError, match="prepare the data first"):
        lengths_of(Dataset.from_list([{"text": "a"}]))


def test_the_histogram_counts_every_row_once() -> None:
    said = length_histogram([3, 3, 9], width=40, num_bars=2, max_length=8).splitlines()
    assert said[0].startswith(" 3-6  █")
    assert said[0].endswith(" 2")
    assert said[1].startswith(" 7-10 █")
    assert said[1].endswith(" 1")
    assert said[2] == "tokens: mean 5, median 3, 90 % up to 9, 99 % up to 9, longest 9"
    assert said[3] == "longer than max_length=8: 1 of 3 rows"
    assert all(len(line) <= 40 for line in said[:2])


@pytest.mark.parametrize("lengths", [[5], [5, 5, 5], list(range(1, 500)), [1, 100_000]])
def test_bars_add_up_to_the_rows(lengths: list[int]) -> None:
    bars = length_histogram(lengths).splitlines()[:-1]
    assert sum(int(bar.split()[-1].replace(",", "")) for bar in bars) == len(lengths)
    assert length_histogram([]) == "no rows"


def test_rows_far_out_share_the_last_bar() -> None:
    bars = length_histogram([10] * 200 + [20] * 200 + [5_000], num_bars=4).splitlines()[:-1]
    assert [bar.split()[0] for bar in bars] == ["10-17", "18-25", "26-33", "34+"]
    assert [bar.split()[-1] for bar in bars] == ["200", "200", "0", "1"]


def test_a_description_says_what_was_cut_dropped_and_done() -> None:
    summary = DataSummary("train", RowFormat.MESSAGES, 1200, 1199, 50_000, 20_000, 650, 3, 40, 30, 1, ("Said aloud.",))
    assert describe(summary).splitlines() == [
        "train: 1,200 rows of messages, 1,199 examples; 50,000 tokens, of which 20,000 are trained (40%); longest 650",
        "  cut: 3 rows lost 40 tokens, 30 of them trained ones",
        "  dropped: 1 rows of which nothing that is trained was left",
        "  Said aloud.",
    ]
    stream = DataSummary("eval", RowFormat.TEXT, 0, 0, 0, 0, 0, notes=("A stream.",))
    assert describe(stream) == "eval: a stream of text rows\n  A stream."


def test_what_commands_a_terminal_or_turns_the_reading_direction_is_shown_by_its_code() -> None:
    assert visible("a\x1b[31mb\x07\x9bc\u202ed\r") == "a‹1B›[31mb‹07›‹9B›c‹202E›d‹0D›"
    assert visible("tab\t newline\n 👩‍👩‍👧 é") == "tab\t newline\n 👩‍👩‍👧 é"


def test_a_view_of_a_row_cannot_command_the_terminal(tokenizer: Any) -> None:
    ids = tokenizer("a\x1b[31mb")["input_ids"]
    assert plain(tokens_of(Example(ids, ids), tokenizer)) == "a⟦‹1B›[31mb⟧"
    assert coloured(tokens_of(Example(ids, ids), tokenizer)).plain == "a‹1B›[31mb"

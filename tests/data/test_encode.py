"""What is trained, token by token; what is cut and dropped, counted; what cannot be used, told at once."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sartor.batching.packing import pack
from sartor.data.encoding.encode import prepare
from sartor.data.encoding.store import dataset_in_memory
from sartor.data.reading.sources import load
from sartor.data.tokens.table import TokenRows
from sartor.errors import ConfigurationError, DataError
from sartor.records import DataSettings, PreparedData, RowFormat

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


def ready(rows: list[dict[str, Any]], tokenizer: Any, *, name: str = "train", **options: Any) -> PreparedData:
    formatting_func = options.pop("formatting_func", None)
    dataset = Dataset.from_list(rows, on_mixed_types="use_json")
    return prepare(dataset, tokenizer, DataSettings(**options), name=name, formatting_func=formatting_func, pack=pack)


def trained(prepared: PreparedData, tokenizer: Any, row: int = 0) -> str:
    """The text of the tokens that are trained."""
    return tokenizer.decode([label for label in prepared.dataset[row]["labels"] if label != -100])


def ids(tokenizer: Any, *pieces: str) -> list[int]:
    """Ids of pieces that are tokenized apart."""
    return [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]


def test_exact_ids_and_labels_of_one_conversation(tokenizer: Any) -> None:
    prepared = ready([{"messages": HI}], tokenizer, assistant_only_loss=True)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    head = [start, *ids(tokenizer, "user\nHi"), end, *ids(tokenizer, "\n"), start, *ids(tokenizer, "assistant\n")]
    answer = [*ids(tokenizer, "Yo"), end]
    assert prepared.dataset[0] == {
        "input_ids": head + answer + ids(tokenizer, "\n"),
        "labels": [-100] * len(head) + answer + [-100],
    }
    assert prepared.summary.num_tokens == len(head) + len(answer) + 1
    assert prepared.summary.num_targets == len(answer)


def test_text_ends_with_the_end_of_text_token_once_and_all_of_it_is_trained(tokenizer: Any) -> None:
    prepared = ready([{"text": "A moon"}, {"text": "A moon<|endoftext|>"}], tokenizer)
    expected = [*ids(tokenizer, "A moon"), tokenizer.eos_token_id]
    assert prepared.dataset["input_ids"][:] == [expected, expected]
    assert prepared.dataset["labels"][:] == [expected, expected]
    assert "The end-of-text token is appended to 1 rows." in prepared.summary.notes


def test_only_completions_are_trained_and_the_prompt_is_when_asked(tokenizer: Any) -> None:
    rows = [{"prompt": "The moon", "completion": " has boots."}]
    assert trained(ready(rows, tokenizer), tokenizer) == " has boots.<|endoftext|>"
    everything = ready(rows, tokenizer, completion_only_loss=False)
    assert trained(everything, tokenizer) == "The moon has boots.<|endoftext|>"


def test_a_completion_starts_where_the_tokens_part(tokenizer: Any) -> None:
    # "boo" + "ts" is tokenized as one word, whose tokens are not those of "boo".
    prepared = ready([{"prompt": "It has rubber boo", "completion": "ts."}], tokenizer)
    assert trained(prepared, tokenizer).endswith("boots.<|endoftext|>")
    assert any("1 rows the prompt alone is tokenized otherwise" in note for note in prepared.summary.notes)


def test_a_conversational_completion_is_trained_with_its_end(tokenizer: Any) -> None:
    rows = [{"prompt": HI[:1], "completion": HI[1:]}]
    prepared = ready(rows, tokenizer)
    assert prepared.summary.format is RowFormat.CONVERSATIONAL_PROMPT_COMPLETION
    assert trained(prepared, tokenizer) == "Yo<|im_end|>\n"
    assert trained(ready(rows, tokenizer, assistant_only_loss=True), tokenizer) == "Yo<|im_end|>"


def test_every_assistant_turn_is_trained_and_nothing_else(tokenizer: Any) -> None:
    more = [*HI, {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Sigh."}]
    prepared = ready(
        [{"messages": [{"role": "system", "content": "Be grim."}, *more]}], tokenizer, assistant_only_loss=True
    )
    assert trained(prepared, tokenizer) == "Yo<|im_end|>Sigh.<|im_end|>"


def test_a_mapping_makes_conversations(tokenizer: Any) -> None:
    rows = [{"question": "Hi", "answer": "Yo"}, {"question": "Sum?", "answer": "72"}]
    mapping = (("user", "{question}"), ("assistant", "{answer}"))
    mapped = ready(rows, tokenizer, mapping=mapping).dataset
    assert mapped[0] == ready([{"messages": HI}], tokenizer).dataset[0]
    assert mapped.column_names == ["input_ids", "labels"]


def test_formatting_func_makes_the_text_that_is_trained(tokenizer: Any) -> None:
    rows = [{"q": "Hi", "a": "Yo"}]
    prepared = ready(rows, tokenizer, formatting_func=lambda row: f"{row['q']} {row['a']}")
    assert trained(prepared, tokenizer) == "Hi Yo<|endoftext|>"
    with pytest.raises(DataError, match="must be one str for each row"):
        ready(rows, tokenizer, formatting_func=lambda row: [row["q"]])
    with pytest.raises(KeyError) as caught:
        ready(rows, tokenizer, formatting_func=lambda row: row["question"])
    assert caught.value.__notes__ == ['formatting_func raised this for train data, row 0: {"q": "Hi", "a": "Yo"}']
    with pytest.raises(ConfigurationError, match="completion_only_loss cannot apply"):
        ready([{"prompt": "a", "completion": "b"}], tokenizer, formatting_func=str)


def test_truncation_is_counted_in_rows_tokens_and_targets(tokenizer: Any) -> None:
    rows = [{"input_ids": list(range(length)), "labels": [-100] * 4 + list(range(4, length))} for length in (5, 6, 9)]
    start = ready(rows, tokenizer, max_length=6)
    assert start.dataset["labels"][:] == [[-100] * 4 + [4], [-100] * 4 + [4, 5], [-100] * 4 + [4, 5]]
    summary = start.summary
    assert (summary.num_truncated_rows, summary.num_truncated_tokens, summary.num_truncated_targets) == (1, 3, 3)
    end = ready(rows, tokenizer, max_length=6, truncation_mode="keep_end")
    assert end.dataset["labels"][2] == [-100, 4, 5, 6, 7, 8]
    assert (end.summary.num_truncated_tokens, end.summary.num_truncated_targets) == (3, 0)


def test_rows_without_targets_left_are_dropped_and_counted(tokenizer: Any) -> None:
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [-100, -100, -100, 4]}, {"input_ids": [5, 6], "labels": [-100, 6]}]
    prepared = ready(rows, tokenizer, max_length=3)
    assert prepared.dataset["input_ids"][:] == [[5, 6]]
    summary = prepared.summary
    assert (summary.num_rows, summary.num_examples, summary.num_dropped_rows) == (2, 1, 1)
    assert (summary.num_tokens, summary.num_targets, summary.longest_tokens) == (2, 1, 2)


def test_what_packing_cuts_is_counted(tokenizer: Any) -> None:
    rows = [{"input_ids": list(range(length))} for length in (5, 2, 3)]
    prepared = ready(rows, tokenizer, packing=True, max_length=4)
    assert prepared.dataset[:]["seq_lengths"] == [[4], [3], [2]]
    assert prepared.summary.num_truncated_tokens == 1
    assert prepared.summary.num_dropped_rows == 0
    split = ready(rows, tokenizer, packing=True, packing_strategy="bfd_split", max_length=4)
    assert (split.summary.num_truncated_tokens, split.summary.num_tokens) == (0, 10)


def test_wrapped_blocks_say_what_they_mix(tokenizer: Any) -> None:
    rows = [{"input_ids": list(range(length))} for length in (5, 2, 3, 2)]
    (note,) = ready(rows, tokenizer, packing=True, packing_strategy="wrapped", max_length=4).summary.notes
    assert "2 of 3 blocks are one running text of several rows" in note  # 4, 1 + 2 + 1, 2 + 2
    assert "rows are cut in 2 places" in note
    assert not ready(rows, tokenizer, packing=True, packing_strategy="bfd_split", max_length=4).summary.notes


def test_masks_of_tokenized_rows_are_folded_into_labels(tokenizer: Any) -> None:
    row = {"input_ids": [1, 2, 3], "completion_mask": [0, 1, 1], "assistant_masks": [1, 1, 0]}
    assert ready([row], tokenizer).dataset[0]["labels"] == [-100, 2, -100]
    assert ready([row], tokenizer, completion_only_loss=False).dataset[0]["labels"] == [1, 2, -100]
    assert ready([{**row, "labels": [1, -100, -100]}], tokenizer).dataset[0]["labels"] == [1, -100, -100]


def test_prepared_data_can_be_prepared_again(tokenizer: Any) -> None:
    settings = DataSettings(max_length=8)
    once = ready([{"input_ids": list(range(n))} for n in (5, 2, 3)], tokenizer, packing=True, max_length=5)
    again = prepare(once.dataset, tokenizer, settings)
    assert again.dataset[:] == once.dataset[:]
    cut = prepare(once.dataset, tokenizer, DataSettings(max_length=4, truncation_mode="keep_end"))
    assert cut.dataset[:]["seq_lengths"] == [[4], [2, 2]]
    with pytest.raises(ConfigurationError, match="packed already"):
        prepare(once.dataset, tokenizer, DataSettings(packing=True), pack=pack)


BAD_ROWS: list[tuple[str, dict[str, Any]]] = [
    ("missing value", {"messages": None}),
    ("wrong type", {"messages": "Hi"}),
    ("no messages", {"messages": []}),
    ("wrong type", {"messages": ["Hi"]}),
    ("unknown role", {"messages": [{"role": "robot", "content": "Hi"}]}),
    ("unknown role", {"messages": [{"content": "Hi"}]}),
    ("missing content", {"messages": [{"role": "user", "content": None}]}),
    ("wrong type", {"messages": [{"role": "user", "content": 5}]}),
    ("wrong type", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}),
    ("empty user message", {"messages": [{"role": "user", "content": " "}, HI[1]]}),
    ("empty assistant message", {"messages": [HI[0], {"role": "assistant", "content": ""}]}),
]


def test_every_kind_of_bad_row_is_named_with_file_and_line_in_one_error(tokenizer: Any, tmp_path: Path) -> None:
    """Ten and one bad rows planted among a thousand: all of them are found, the good ones are not blamed."""
    rows: list[dict[str, Any]] = [{"messages": HI} for _ in range(1000)]
    places = sorted(random.Random(0).sample(range(1000), len(BAD_ROWS)))
    for place, (_, row) in zip(places, BAD_ROWS, strict=True):
        rows[place] = row
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        prepare(load(path), tokenizer, DataSettings())
    message = str(caught.value)
    assert f"{len(BAD_ROWS)} of 1,000 rows cannot be used" in message
    kinds = [kind for kind, _ in BAD_ROWS]
    for kind in dict.fromkeys(kinds):
        line = places[kinds.index(kind)] + 1
        count = kinds.count(kind)
        place = f"train.jsonl, line {line}"
        assert (f"{kind} ({place})" if count == 1 else f"{kind} ({count:,} times, first in {place})") in message
    assert '"robot"' in message


@pytest.mark.parametrize("kind_and_row", BAD_ROWS, ids=[str(number) for number in range(len(BAD_ROWS))])
def test_each_bad_row_is_bad_alone(kind_and_row: tuple[str, dict[str, Any]], tokenizer: Any) -> None:
    kind, row = kind_and_row
    with pytest.raises(DataError, match=rf"1 of 2 rows.*\n.*{kind} \(eval data, row 1\)"):
        ready([{"messages": HI}, row], tokenizer, name="eval")


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"text": ""}, {}, "empty text"),
        ({"text": None}, {}, "missing value"),
        ({"prompt": "a", "completion": " "}, {}, "empty text.*'completion'"),
        ({"prompt": None, "completion": "b"}, {}, "missing value.*'prompt'"),
        ({"prompt": HI[:1], "completion": "b"}, {}, "wrong type.*'completion' holds a str"),
        ({"messages": HI[:1]}, {"assistant_only_loss": True}, "no assistant message"),
        (
            {"question": None, "answer": "b"},
            {"mapping": (("user", "{question}"), ("assistant", "{answer}"))},
            "missing",
        ),
        (
            {"question": "a", "answer": [1]},
            {"mapping": (("user", "{question}"), ("assistant", "{answer}"))},
            "holds a list",
        ),
        (
            {"question": "a", "answer": ""},
            {"mapping": (("user", "{question}"), ("assistant", "{answer}"))},
            "empty assistant",
        ),
        ({"input_ids": []}, {}, "no tokens"),
        ({"input_ids": [1, -5]}, {}, "bad token ids"),
        ({"input_ids": [1, 2], "labels": [1]}, {}, "labels has 1 entries; the row has 2 tokens"),
        ({"input_ids": [1, 2], "seq_lengths": [1]}, {}, "seq_lengths adds up to 1"),
        ({"messages": HI, "chat_template_kwargs": {"tokenize": True}}, {}, "may not set tokenize"),
        (
            {"prompt": HI[:1], "completion": [{"role": "user", "content": "b"}]},
            {"assistant_only_loss": True},
            "nothing tr",
        ),
    ],
)
def test_other_bad_rows_are_named(row: dict[str, Any], options: dict[str, Any], said: str, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=rf"1 of 1 rows.*\n.*{said}"):
        ready([row], tokenizer, **options)


def test_empty_system_and_tool_messages_and_prompts_are_fine(tokenizer: Any) -> None:
    assert trained(ready([{"prompt": "", "completion": "Yo"}], tokenizer), tokenizer) == "Yo<|endoftext|>"
    messages = [{"role": "system", "content": ""}, *HI, {"role": "tool", "content": ""}]
    assert trained(ready([{"messages": messages}], tokenizer), tokenizer).startswith("<|im_start|>system\n<|im_end|>")


def test_unknown_columns_are_shown_with_a_suggestion(tokenizer: Any) -> None:
    with pytest.raises(
        DataError, match=r'(?s)columns are question, answer;.*"Why\?".*--map user="\{question\}" --map assist'
    ):
        ready([{"question": "Why?", "answer": "So."}], tokenizer)


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"text": "a"}, {"assistant_only_loss": True}, "needs conversations; the train data has text"),
        ({"text": "a"}, {"completion_only_loss": True}, "Leave it out"),
        ({"messages": HI}, {"completion_only_loss": True}, "Use assistant_only_loss=True"),
        ({"text": "a"}, {"truncation_mode": "keep_middle"}, "Use keep_start or keep_end"),
        ({"text": "a"}, {"max_length": 0}, "leaves no token"),
        ({"text": "a"}, {"max_length": None, "packing": True}, "needs max_length"),
        ({"a": "a"}, {"mapping": (("assistant", "{b}"),)}, "'b', which the data does not have. Its columns are a"),
    ],
)
def test_options_that_do_not_fit_are_refused(row: Any, options: dict[str, Any], said: str, tokenizer: Any) -> None:
    with pytest.raises(ConfigurationError, match=said):
        ready([row], tokenizer, **options)


def test_a_tokenizer_without_end_of_text_is_refused_for_text(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(ConfigurationError, match="no end-of-text token to append"):
        ready([{"text": "a"}], tokenizer)


def test_nothing_to_train_is_an_error_that_says_why(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="all labels are -100"):
        ready([{"input_ids": [1, 2], "labels": [-100, -100]}], tokenizer)
    with pytest.raises(DataError, match=r"max_length=1 .*nothing that is trained is left.*the longest has 2 tokens"):
        ready([{"input_ids": [1, 2], "labels": [-100, 2]}], tokenizer, max_length=1)
    with pytest.raises(DataError, match="there are no rows"):
        ready([], tokenizer)


def test_transforms_and_images_are_refused(tokenizer: Any) -> None:
    dataset = Dataset.from_list([{"text": "a"}]).with_transform(lambda batch: batch)
    with pytest.raises(DataError, match="with_transform"):
        prepare(dataset, tokenizer, DataSettings())
    with pytest.raises(DataError, match="only text is supported"):
        ready([{"text": "a", "image": "b"}], tokenizer)


def test_a_conversation_that_never_ends_is_said(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}<|im_end|>{% endfor %}"
    prepared = ready([{"messages": HI}], tokenizer)
    assert any(
        "In 1 of 1 rows no end-of-text token is trained (first train data, row 0)" in note
        for note in prepared.summary.notes
    )
    tokenizer.eos_token = "<|im_end|>"
    assert ready([{"messages": HI}], tokenizer).summary.notes == ()


def test_columns_that_nothing_uses_are_said(tokenizer: Any) -> None:
    prepared = ready([{"text": "a", "id": 1, "source": "b"}], tokenizer)
    assert "Columns that are not used: id, source." in prepared.summary.notes


def test_a_bad_row_of_a_stream_is_named_when_it_is_read(tokenizer: Any) -> None:
    rows = Dataset.from_list([{"text": "a"}] * 100 + [{"text": ""}]).to_iterable_dataset()
    stream = prepare(rows, tokenizer, DataSettings()).dataset
    with pytest.raises(DataError, match=r"empty text \(train data, row 100\)"):
        list(stream)


def test_ids_and_labels_move_together() -> None:
    rows = TokenRows.from_lists([[1, 2, 3], [4], [5, 6]], [[-100, 2, 3], [4], [-100, 6]])
    assert rows.take(rows.lengths.argsort()).to_lists() == {
        "input_ids": [[4], [5, 6], [1, 2, 3]],
        "labels": [[4], [-100, 6], [-100, 2, 3]],
    }
    assert rows.truncate(2, "keep_end").to_lists() == {
        "input_ids": [[2, 3], [4], [5, 6]],
        "labels": [[2, 3], [4], [-100, 6]],
    }
    assert rows.targets_per_row.tolist() == [2, 0, 1]  # nothing predicts a first token
    assert rows.has_labels.tolist() == [True, True, True]


def test_large_tables_keep_their_rows_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sartor.data.encoding.store.EXAMPLES_PER_BATCH", 2)
    ids = [[1], [2, 3], [4], [5, 6, 7], [8]]
    dataset, _ = dataset_in_memory(TokenRows.from_lists(ids, ids, [[len(row)] for row in ids]))
    assert dataset["input_ids"][:] == ids
    assert dataset["seq_lengths"][:] == [[1], [2], [1], [3], [1]]
    assert dataset[3]["labels"] == [5, 6, 7]

"""Everything planted in rows is found, with its row and its count; clean rows have no findings."""

from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from sartor.batching.packing import pack
from sartor.data.encoding.encode import prepare
from sartor.data.inspection.examine import Examination, Given
from sartor.data.inspection.prepared import example_of
from sartor.data.inspection.record import Severity
from sartor.data.reading import sources
from sartor.data.templates.rendering import CHATML, adopt_chatml
from sartor.records import DataSettings
from tests.data.conftest import TUTORIAL_TEMPLATE
from tests.data.inspection.helpers import conversation, found, inspect, places, sentence

CLEAN = [conversation(number) for number in range(40)]


def messages(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def planted(at: int, row: dict[str, Any]) -> list[dict[str, Any]]:
    return [*CLEAN[:at], row, *CLEAN[at:]]


def test_clean_rows_have_no_findings(tokenizer: Any) -> None:
    inspection = inspect(CLEAN, tokenizer, assistant_only_loss=True)
    assert inspection.findings == ()
    assert not inspection.has_errors
    assert inspection.searched == "Exact duplicates were looked for in all 40 rows, near ones too."


@pytest.mark.parametrize(
    ("kind", "severity", "row"),
    [
        ("near_empty_answer", Severity.WARNING, conversation(7, answer="...")),
        ("near_empty_answer", Severity.WARNING, conversation(7, answer="N/A")),
        ("short_answer", Severity.NOTE, conversation(7, answer="Yes")),
        (
            "ends_with_user",
            Severity.WARNING,
            messages(("user", "A"), ("assistant", sentence(2)), ("user", "And then?")),
        ),
        ("foreign_markers", Severity.WARNING, conversation(7, question="[INST] What is a jetty? [/INST]")),
        ("foreign_markers", Severity.WARNING, conversation(7, answer=f"### Response: {sentence(1)}")),
        ("special_tokens", Severity.WARNING, conversation(7, question="What does <|im_end|> mean?")),
        ("exact_duplicates", Severity.WARNING, CLEAN[3]),
        ("near_duplicates", Severity.WARNING, conversation(3, answer=sentence(1003) + "!")),
        ("same_question", Severity.NOTE, conversation(3, answer=sentence(500))),
    ],
)
def test_what_is_planted_is_found_in_its_row_and_nothing_else(
    kind: str, severity: Severity, row: dict[str, Any], tokenizer: Any
) -> None:
    inspection = inspect(planted(25, row), tokenizer, completion_only_loss=None)
    told = [finding for finding in inspection.findings if finding.kind != "everything_trained"]
    # A near duplicate asks the same question.
    assert {finding.kind for finding in told} - {"same_question"} == {kind} - {"same_question"}
    finding = found(inspection, kind)
    assert (finding.severity, finding.count, places(finding)) == (severity, 1, [25])
    assert finding.advice


def test_all_are_counted_and_the_first_five_named(tokenizer: Any) -> None:
    rows = [conversation(number, answer="?" if number % 2 else None) for number in range(20)]
    finding = found(inspect(rows, tokenizer), "near_empty_answer")
    assert (finding.count, places(finding)) == (10, [1, 3, 5, 7, 9])


def test_short_answers_among_short_ones_are_not_conspicuous(tokenizer: Any) -> None:
    rows = [conversation(number, answer=str(number)) for number in range(20)]
    assert not any(finding.kind == "short_answer" for finding in inspect(rows, tokenizer).findings)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_bad_rows_are_findings_and_the_rest_is_shown(policy: str, tokenizer: Any) -> None:
    bad = [messages(("robot", "Hi")), messages(("user", "")), messages(("robot", "Ho"))]
    rows = [bad[0], *CLEAN[:5], bad[1], *CLEAN[5:], bad[2]]
    inspection = inspect(rows, tokenizer, bad_rows=policy)
    told = [finding for finding in inspection.findings if finding.kind == "bad_row"]
    assert [(finding.count, places(finding)) for finding in told] == [(2, [0, 42]), (1, [6])]
    assert {finding.severity for finding in told} == {Severity.ERROR if policy == "error" else Severity.WARNING}
    assert inspection.has_errors is (policy == "error")
    assert (inspection.summary.num_rows, inspection.summary.num_examples) == (43, 40)
    assert inspection.summary.num_skipped_rows == (3 if policy == "skip" else 0)
    assert any("3 rows cannot be used" in note for note in inspection.summary.notes) is (policy == "error")
    assert len(inspection.lengths.tokens) == 40


def test_lines_of_a_file_are_named(tokenizer: Any, tmp_path: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b c d"}\n\n{"prompt": "e", "completion": "..."}\n{"prompt\n')
    inspection = inspect(sources.load(file), tokenizer)
    assert [sight.where for sight in found(inspection, "near_empty_answer").first] == ["rows.jsonl, line 3"]
    assert [sight.where for sight in found(inspection, "bad_row").first] == ["rows.jsonl, line 4"]


def test_rows_that_max_length_cuts_or_empties_are_named(tokenizer: Any) -> None:
    rows = planted(4, conversation(77, question=sentence(9, 60)))
    inspection = inspect(rows, tokenizer, assistant_only_loss=True, max_length=300)
    emptied, cut = found(inspection, "no_targets_left"), found(inspection, "longer_than_max_length")
    assert (emptied.count, places(emptied), emptied.severity) == (1, [4], Severity.WARNING)
    assert cut.count == inspection.summary.num_truncated_rows
    assert inspection.summary.num_dropped_rows == 1
    refused = inspect(rows, tokenizer, assistant_only_loss=True, max_length=300, no_targets="error")
    assert found(refused, "no_targets_left").severity is Severity.ERROR
    assert refused.has_errors


def test_rows_longer_than_the_context_or_than_all_others_are_named(tokenizer: Any) -> None:
    rows = planted(4, conversation(77, answer=sentence(9, 1200)))
    inspection = inspect(rows, tokenizer, max_length=None, context=1000)
    for kind in ("longer_than_context", "unusually_long"):
        assert (found(inspection, kind).count, places(found(inspection, kind))) == (1, [4])


def test_columns_that_are_not_used_and_questions_that_are_trained_are_noted(tokenizer: Any) -> None:
    rows = [{**row, "id": number} for number, row in enumerate(CLEAN)]
    inspection = inspect(rows, tokenizer)
    assert "id" in found(inspection, "unused_columns").message
    assert found(inspection, "everything_trained").severity is Severity.NOTE


def test_reasoning_that_the_template_leaves_out_is_named(tokenizer: Any) -> None:
    tokenizer.chat_template, tokenizer.eos_token = TUTORIAL_TEMPLATE, "<|im_end|>"
    row = conversation(7)
    row["messages"][1]["reasoning_content"] = "First I think of a jetty."
    inspection = inspect(planted(6, row), tokenizer, assistant_only_loss=True)
    finding = found(inspection, "dropped_fields")
    assert (finding.count, places(finding)) == (1, [6])
    assert "reasoning" in finding.message


def test_earlier_answers_that_the_template_rewrites_are_named(tokenizer: Any) -> None:
    content = (
        "message.content.split('</think>')[-1] if message.role == 'assistant' and not loop.last else message.content"
    )
    tokenizer.chat_template = CHATML.replace("message.content", f"({content})")
    tokenizer.eos_token = "<|im_end|>"
    row = messages(
        ("user", "A"), ("assistant", f"<think>b</think>{sentence(1)}"), ("user", "C"), ("assistant", sentence(2))
    )
    finding = found(inspect(planted(2, row), tokenizer), "rewritten_turns")
    assert (finding.count, places(finding)) == (1, [2])


def test_an_answer_without_a_trained_end_is_named(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    finding = found(inspect(CLEAN, tokenizer), "no_end_trained")
    assert finding.count == 40


def test_evaluation_rows_that_are_trained_on_are_found(tokenizer: Any) -> None:
    train = Examination(Dataset.from_list(CLEAN), Given(tokenizer, DataSettings()))
    train.run()
    rows = [conversation(900), CLEAN[11], conversation(12, answer=sentence(1012) + "!")]
    inspection = inspect(rows, tokenizer, train=train)
    exact, near = found(inspection, "eval_in_train"), found(inspection, "eval_near_train")
    assert (exact.count, places(exact), near.count, places(near)) == (1, [1], 1, [2])
    assert "row 11" in exact.first[0].excerpt
    assert inspection.name == "eval"


@pytest.mark.parametrize(
    "options",
    [
        {"assistant_only_loss": True},
        {"max_length": 200, "assistant_only_loss": True},
        {"max_length": 150, "truncation_mode": "keep_end"},
        {"max_length": 512, "packing": True},
        {"max_length": 128, "packing": True, "packing_strategy": "wrapped"},
        {"max_length": 128, "packing": True, "packing_strategy": "bfd_split", "shuffle_dataset": True},
        {"unroll": True, "assistant_only_loss": True},
    ],
)
def test_the_counts_are_those_of_a_training_run(options: dict[str, Any], tokenizer: Any) -> None:
    rows = [*CLEAN, messages(*(("user", "A"), ("assistant", sentence(1)), ("user", "C"), ("assistant", sentence(2))))]
    adopt_chatml(tokenizer)
    prepared = prepare(Dataset.from_list(rows), tokenizer, DataSettings(**options, data_cache="none"), pack=pack)
    summary = inspect(rows, tokenizer, **options).summary
    names = [
        "format",
        "num_rows",
        "num_examples",
        "num_tokens",
        "num_targets",
        "longest_tokens",
        "num_truncated_rows",
        "num_truncated_tokens",
        "num_truncated_targets",
        "num_dropped_rows",
        "notes",
        "source_rows",
    ]
    for name in names:
        assert getattr(summary, name) == getattr(prepared.summary, name), name


def test_samples_are_the_rows_that_are_trained_token_by_token(tokenizer: Any) -> None:
    inspection = inspect(planted(7, conversation(7, answer="...")), tokenizer, assistant_only_loss=True, num_samples=3)
    settings = DataSettings(assistant_only_loss=True, data_cache="none")
    prepared = prepare(Dataset.from_list(planted(7, conversation(7, answer="..."))), tokenizer, settings)
    assert [sample.where for sample in inspection.samples] == [f"train data, row {number}" for number in (0, 20, 40, 7)]
    for sample in inspection.samples:
        example = example_of(prepared.dataset, int(sample.where.split()[-1]))
        assert [token.id for token in sample.tokens] == list(example.input_ids)
        assert [token.is_target for token in sample.tokens] == example.is_target.tolist()
    assert inspection.samples[-1].findings == ("near_empty_answer",)


def test_a_stream_is_inspected_as_it_is_read(tokenizer: Any) -> None:
    stream = IterableDataset.from_generator(lambda: iter(planted(30, conversation(3, answer="..."))))
    inspection = inspect(stream, tokenizer, num_samples=2)
    assert inspection.summary.num_rows == 41
    assert places(found(inspection, "near_empty_answer")) == [30]
    assert [sample.where for sample in inspection.samples[:2]] == ["train data, row 0", "train data, row 1"]


def test_tokenized_rows_are_inspected_by_their_ids(tokenizer: Any) -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [5, 6]}, {"input_ids": [5, 6, 7]}]
    finding = found(inspect(rows, tokenizer), "exact_duplicates")
    assert places(finding) == [2]


def test_rows_of_which_nothing_is_trained_are_named(tokenizer: Any) -> None:
    rows = [{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7, 8], "labels": [-100, -100]}]
    finding = found(inspect(rows, tokenizer), "untrained_rows")
    assert (finding.count, places(finding)) == (1, [1])


def test_the_end_of_a_short_row_is_its_own(tokenizer: Any) -> None:
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("one two", "ab", "cd")]
    finding = found(inspect([{"input_ids": some, "labels": some} for some in ids], tokenizer), "no_end_trained")
    assert [sight.excerpt for sight in finding.first] == [f"it ends with {text!r}" for text in ("one two", "ab", "cd")]


def test_each_reason_for_which_a_template_refuses_rows_is_told(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% if message.content == 'Stop' %}{{ raise_exception('no stopping') }}{% endif %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    )
    bad = [messages(("system", "A"), ("user", "B"), ("assistant", "C")), messages(("user", "Stop"), ("assistant", "C"))]
    finding = found(inspect([*CLEAN, *bad], tokenizer), "bad_row")
    assert (finding.count, places(finding)) == (2, [40, 41])
    assert "no system" in finding.message
    assert "no stopping" in finding.first[1].excerpt


def test_nothing_trained_at_all_is_an_error(tokenizer: Any) -> None:
    inspection = inspect([{"input_ids": [5, 6], "labels": [-100, -100]}], tokenizer)
    assert found(inspection, "nothing_trained").severity is Severity.ERROR

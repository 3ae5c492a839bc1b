"""Mappings are parsed whole or refused whole; suggestions fit the columns."""

import pytest

from sartor.data.rows.mapping import check_mapping, columns_of, fill, parse_mapping, suggest
from sartor.errors import ConfigurationError


def test_the_tutorials_mapping() -> None:
    pairs = parse_mapping(["user={question}", "assistant=<think>{reasoning}</think> {answer}"])
    assert pairs == (("user", "{question}"), ("assistant", "<think>{reasoning}</think> {answer}"))
    assert columns_of(pairs) == ["question", "reasoning", "answer"]
    row = {"question": "Why?", "reasoning": "Hm {x}", "answer": 7}
    assert [fill(template, row) for _, template in pairs] == ["Why?", "<think>Hm {x}</think> 7"]


def test_doubled_braces_are_braces_and_text_may_hold_an_equals_sign() -> None:
    pairs = parse_mapping(["system=a=b {{}}", "assistant={answer}"])
    assert [fill(template, {"answer": "c"}) for _, template in pairs] == ["a=b {}", "c"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("user", 'has no "="'),
        ("asistant={a}", "Did you mean assistant"),
        ("bot={a}", "Roles are system, developer, user, assistant, tool"),
        ("user={a", "twice"),
        ("user={}", "names no column"),
        ("user={a:>5}", "has a format"),
        ("user= ", "template is empty"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said(entry: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse_mapping([entry, "assistant={b}"])


def test_all_bad_entries_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_mapping(["user", "bot={a}", "assistant={"])
    assert len(caught.value.problems) == 3


def test_a_mapping_without_an_answer_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no assistant"):
        parse_mapping(["user={a}"])
    assert parse_mapping([]) == ()


def test_a_missing_column_is_told_with_the_columns_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"'questoin'.*columns are question, answer\. Did you mean question\?"):
        check_mapping((("user", "{questoin}"), ("assistant", "{answer}")), ["question", "answer"])


@pytest.mark.parametrize("pairs", [(("bot", "{a}"),), (("user", "{a"), ("assistant", "{a}")), (("user", "{a}"),)])
def test_a_mapping_that_was_not_parsed_here_is_checked_too(pairs: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(ConfigurationError, match="--map"):
        check_mapping(pairs, ["a"])


@pytest.mark.parametrize(
    ("columns", "suggested"),
    [
        (
            ["question", "reasoning", "answer"],
            '--map user="{question}" --map assistant="<think>{reasoning}</think> {answer}"',
        ),
        (
            ["instruction", "input", "output"],
            "--map user=$'{instruction}\\n\\n{input}' --map assistant=\"{output}\"",
        ),
        (["input", "output"], '--map user="{input}" --map assistant="{output}"'),
        (
            ["system_prompt", "Query", "Response"],
            '--map system="{system_prompt}" --map user="{Query}" --map assistant="{Response}"',
        ),
        (["title", "article"], "--dataset_text_field article"),
        (["x", "y"], '--map user="{...}"'),
    ],
)
def test_a_suggestion_names_the_columns(columns: list[str], suggested: str) -> None:
    said = suggest(columns, dict.fromkeys(columns, "value"))
    assert suggested in said
    assert f'"{columns[0]}": "value"' in said

"""The terminal shows counts, findings and rows at any width, with colours or with marks instead."""

import io
from typing import Any

import pytest
from rich.console import Console

from sartor.data.inspection.record import Inspection
from sartor.data.inspection.terminal import plain, show
from tests.data.inspection.helpers import conversation, inspect


def shown(inspection: Inspection, *, width: int = 100, num_samples: int = 3, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, **options)
    show(inspection, console, num_samples)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


@pytest.fixture
def inspection(tokenizer: Any) -> Inspection:
    rows = [conversation(1), conversation(2, answer="..."), {"messages": [{"role": "robot", "content": "[bold]Hi"}]}]
    rows.append(conversation(4, answer="red \x1b[31m and [red]markup[/red]"))
    return inspect(rows, tokenizer, assistant_only_loss=True, max_length=150)


def test_without_colours_marks_say_what_is_trained_and_cut(inspection: Inspection) -> None:
    for options in ({}, {"force_terminal": True, "no_color": True, "color_system": "standard"}):
        text = shown(inspection, num_samples=9, **options)
        assert "⟦...<|im_end|>⟧" in text
        assert "⟨cut:" in text
        assert "\x1b[32m" not in text


def test_with_colours_trained_text_is_green_and_not_marked(inspection: Inspection) -> None:
    text = shown(inspection, force_terminal=True, color_system="standard")
    assert "⟦" not in text
    assert "\x1b[1;32m...\x1b[0m" in text


@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int, inspection: Inspection) -> None:
    text = shown(inspection, width=width)
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    assert "robot'" in " ".join(words)
    assert "near-" not in text


def test_rows_cannot_command_the_terminal_or_the_markup(inspection: Inspection) -> None:
    text = shown(inspection, num_samples=9)
    assert "\x1b" not in text
    assert "‹1B›[31m and [red]markup[/red]" in text.replace("\n", " ")
    assert "[bold]Hi" in text


def test_findings_are_counted_with_the_worst_first(inspection: Inspection) -> None:
    text = shown(inspection)
    assert "Findings: 1 error, 2 warnings" in text
    assert text.index("error: 1 row: Unknown role") < text.index("warning: 1 row: An answer says nothing")
    assert "train data, row 2" in text


def test_no_rows_are_shown_where_none_are_asked_for(inspection: Inspection) -> None:
    assert "token by token" not in shown(inspection, num_samples=0)


def test_what_is_not_shown_of_a_long_row_is_said(tokenizer: Any) -> None:
    text = shown(inspect([{"input_ids": [70] * 5000}], tokenizer, max_length=None), num_samples=1)
    assert "more tokens: --html FILE shows more" in text


def test_marks_enclose_exactly_what_is_trained(inspection: Inspection) -> None:
    for sample in inspection.samples:
        trained = "".join(token.text for token in sample.tokens if token.is_target and not token.is_cut)
        inside = [part.partition("⟧")[0] for part in plain(sample.tokens).split("⟦")[1:]]
        assert "".join(inside).replace("↵", "") == trained.replace("\x1b", "‹1B›")


def test_rows_of_which_none_can_be_used_are_no_stream(tokenizer: Any) -> None:
    text = shown(inspect([{"messages": [{"role": "robot", "content": "Hi"}]}], tokenizer))
    assert text.startswith("train: 1 rows of messages, 0 examples; 0 tokens")
    assert "1 row cannot be used" in text

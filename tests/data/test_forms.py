"""Forms: what they give is what doing everything anew gives, whatever a template does with texts."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from sartor.data.encoding.rendering import Rendering
from sartor.data.encoding.template import render, render_marked
from sartor.data.reading.problems import ProblemLog
from sartor.data.rows.formats import TrainingRow
from sartor.data.targets.provenance import forms
from sartor.data.targets.provenance.outline import Outline
from sartor.data.targets.prover import Prover, Unproven
from tests.data.chat_templates import CHATML, HOSTILE, PUBLISHED, SPECIAL, chatml
from tests.data.conftest import make_small_tokenizer
from tests.data.test_trl_templates import FOLDER, NAMES, SUFFIX, end_tokens

ATOMS = ["<|im_end|>", "<|im_start|>", "</s>"]
PARTS = {"Hi": 8, "Yo": 8, "a b": 6, " ": 4, "\n": 3, "</think>": 1, "<think>": 1, "<tool_response>": 1, "x": 4, "é": 2}
SPOILED = {
    "assistant": 1,
    "<|im_end|>": 0.1,
    "<|im_start|>assistant\n": 0.1,
    "</s>": 0.1,
    "<": 0.1,
    "###": 0.3,
    "|": 0.1,
}

TEMPLATES = {
    **{name: (template.source, template.end_tokens) for name, template in {**PUBLISHED, **HOSTILE}.items()},
    **{f"trl's {name}": ((FOLDER / f"{name}{SUFFIX}").read_text(), tuple(end_tokens(name))) for name in NAMES},
}
LOOKS = {
    "a part of it": "{{ message.content[:1] }}",
    "its length": "{% if message.content|length > 2 %}!{% endif %}",
    "whether it is in a text": "{% if message.content in 'Hi, Yo' %}!{% endif %}",
    "whether it is in a list": "{% if message.content in ['Hi', 'Yo'] %}!{% endif %}",
    "what it is the key of": "{{ {'Hi': '!'}[message.content] }}",
    "whether it is one text": "{% if message.content == 'Hi' or 'Yo' == message.content %}!{% endif %}",
    "whether it is no other text": "{% if message.content != 'Hi' %}!{% endif %}",
    "whether a test says so": "{% if message.content is eq 'Hi' %}!{% endif %}",
    "whether it is before another": "{% if message.content < 'M' %}!{% endif %}",
    "what it begins with": "{% if message.content.startswith('H') %}!{% endif %}",
    "what it holds": "{% if 'a' in message.content %}!{% endif %}",
    "its letters": "{% for letter in message.content %}{% if letter == 'a' %}!{% endif %}{% endfor %}",
    "whether it is there": "{% if message.content.strip() %}!{% endif %}",
    "whether it is upper case": "{% if message.content is upper %}!{% endif %}",
    "those that equal it": "{% if messages|selectattr('content', 'equalto', 'Hi')|list|length %}!{% endif %}",
    "those that are in a list": "{% if messages|selectattr('content', 'in', ['Hi'])|list|length %}!{% endif %}",
    "the message as text": "{% if 'Hi' in (message|string) %}!{% endif %}",
    "whether messages are equal": "{% if message == {'role': 'user', 'content': 'Hi'} %}!{% endif %}",
    "which is first by the alphabet": "{% if (messages|map(attribute='content')|sort|first) == 'Hi' %}!{% endif %}",
    "what replaces it": "{{ message.content|replace('H', '!') }}",
    "a number made of it": "{{ message.content|int(7) }}",
    "a method by its name": "{% if (message.content|attr('startswith'))('H') %}!{% endif %}",
    "through a macro": "{% macro is_hi(t) %}{% if t == 'Hi' %}!{% endif %}{% endmacro %}{{ is_hi(message.content) }}",
    "through a namespace": "{% set n = namespace(t=message.content) %}{% if n.t.endswith('o') %}!{% endif %}",
    "joined with others": "{% if (message.content ~ 'x') == 'Hix' %}!{% endif %}",
    "its hash": "{% set d = dict([(message.content, 1)]) %}{% if 'Hi' in d %}!{% endif %}",
}


@pytest.fixture(autouse=True)
def from_the_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "SEEN_BEFORE", 1)


def conversation(chance: random.Random, parts: dict[str, float]) -> list[dict[str, Any]]:
    """One or two turns, perhaps with a system message and with reasoning."""

    def text() -> str:
        while True:
            made = "".join(chance.choices(list(parts), list(parts.values()), k=chance.randint(1, 4)))
            if made.strip():
                return made

    messages: list[dict[str, Any]] = []
    if chance.random() < 0.3:
        messages.append({"role": "system", "content": text() if chance.random() < 0.9 else " "})
    for _ in range(chance.randint(1, 2)):
        messages.append({"role": "user", "content": text()})
        answer = {"role": "assistant", "content": text()}
        if chance.random() < 0.2:
            answer["reasoning_content"] = text()
        messages.append(answer)
    return messages


def outcome(proof: Callable[[], Any]) -> Any:
    """A proof, or why there is none."""
    try:
        return proof()
    except Unproven as error:
        return error.kind, str(error)
    except Exception as error:
        return type(error).__name__, str(error)


def alone(prover: Prover, messages: list[dict[str, Any]]) -> Any:
    """What is found for a conversation alone."""
    trained = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    return outcome(lambda: prover._proven(messages, None, {}, trained))


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_form_proves_what_is_proven_alone(name: str) -> None:
    source, ends = TEMPLATES[name]
    prover = Prover(source, SPECIAL, ends, ATOMS)
    chance = random.Random(name)
    for _ in range(40):
        messages = conversation(chance, {**PARTS, **SPOILED})
        assert outcome(lambda messages=messages: prover.prove(messages)) == alone(prover, messages), messages


@pytest.mark.parametrize("name", sorted(LOOKS))
def test_a_template_that_looks_at_a_text_is_not_taken_for_one_that_does_not(name: str) -> None:
    turn = "{{ '<|im_start|>' + message.role + '\n' + message.content }}" + LOOKS[name] + "{{ '<|im_end|>\n' }}"
    prover = Prover(chatml(turn), SPECIAL, ["<|im_end|>"], ATOMS)
    chance = random.Random(name)
    for _ in range(40):
        messages = conversation(chance, {"Hi": 1, "Yo": 1, "a": 1, "H": 1, " ": 0.2})
        assert outcome(lambda messages=messages: prover.prove(messages)) == alone(prover, messages), messages


@pytest.mark.parametrize("name", ["chatml", "qwen3", "trl's llama3", "trl's qwen2_5"])
def test_most_conversations_are_proven_by_a_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, ends = {**TEMPLATES, "chatml": (CHATML, ("<|im_end|>",))}[name]
    prover = Prover(source, SPECIAL, ends, ATOMS)
    calls: list[int] = []
    proven = prover._proven
    monkeypatch.setattr(prover, "_proven", lambda *arguments: calls.append(1) or proven(*arguments))
    for number in range(50):
        prover.prove([{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": f"A{number}"}])
    assert len(calls) == 1


def test_an_outline_begins_with_another_whatever_is_in_the_slots() -> None:
    whole = Outline(("a", "bc", "d"), (0, 1))
    assert whole.begins_with(Outline(("a", "b"), (0,)))
    assert whole.begins_with(Outline(("a", ""), (0,)))
    assert whole.begins_with(whole)
    assert not whole.begins_with(Outline(("a", "bd"), (0,)))
    assert not whole.begins_with(Outline(("a", "b"), (1,))), "the same text only where both slots hold the same"
    assert not whole.begins_with(Outline(("", "b"), (0,))), "the same text only where the slot begins so"
    assert not whole.begins_with(Outline(("a", "bc", "d", ""), (0, 1, 2)))


def row_of(messages: list[dict[str, Any]], number: int) -> TrainingRow:
    return TrainingRow(f"rows, row {number}", messages)


def body(row: TrainingRow) -> list[dict[str, Any]]:
    assert isinstance(row.body, list)
    return row.body


MARKED = {
    "plain": chatml("{{ message.role }}{% generation %}{{ message.content }}{% endgeneration %}"),
    "around a part": chatml("{{ message.role }}{% generation %}<a>{{ message.content|trim }}</a>{% endgeneration %}!"),
    "in a macro": "{% macro turn(m) %}<{% generation %}{{ m.content }}{% endgeneration %}>{% endmacro %}"
    + chatml("{{ message.role }}{{ turn(message) }}"),
    "one in the other": chatml(
        "{% generation %}a{% generation %}{{ message.content }}{% endgeneration %}b{% endgeneration %}"
    ),
    "by the text": chatml(
        "{% if 'Hi' in message.content %}{% generation %}{{ message.content }}{% endgeneration %}{% endif %}!"
    ),
    "collected": "{% set all %}{% for m in messages %}.{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    "{% endset %}{{ all }}",
}


@pytest.mark.parametrize("name", sorted({*TEMPLATES, *MARKED}))
def test_texts_and_marked_blocks_are_those_of_transformers(name: str) -> None:
    tokenizer = make_small_tokenizer()
    tokenizer.chat_template = MARKED[name] if name in MARKED else TEMPLATES[name][0]
    rendering = Rendering(tokenizer)
    chance = random.Random(name)
    rows = [row_of(conversation(chance, {**PARTS, **SPOILED}), number) for number in range(40)]
    for prompt in (False, True):
        found, expected = ProblemLog(), ProblemLog()
        assert rendering.texts(rows, body, found, add_generation_prompt=prompt) == render(
            tokenizer, rows, body, expected, add_generation_prompt=prompt
        )
        assert found.to_json() == expected.to_json()
    if "generation" in tokenizer.chat_template:
        found, expected = ProblemLog(), ProblemLog()
        assert rendering.marked(rows, body, found) == render_marked(tokenizer, rows, body, expected)
        assert found.to_json() == expected.to_json()


@pytest.mark.parametrize("name", ["around a part", "plain"])
def test_most_texts_with_marks_are_filled_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_small_tokenizer()
    tokenizer.chat_template = MARKED[name]
    rendered: list[str] = []

    def counted(tokenizer: Any, rows: Any, *others: Any) -> Any:
        rendered.extend(row.where for row in rows)
        return render_marked(tokenizer, rows, *others)

    monkeypatch.setattr("sartor.data.encoding.rendering.render_marked", counted)
    rows = [row_of([{"role": "user", "content": f" Hi {number} "}], number) for number in range(50)]
    assert Rendering(tokenizer).marked(rows, body, ProblemLog()) == render_marked(tokenizer, rows, body, ProblemLog())
    assert len(set(rendered)) <= 8


def test_rows_with_tools_or_keywords_of_their_own_are_not_mixed_up() -> None:
    tokenizer = make_small_tokenizer()
    tokenizer.chat_template = "{{ tools }}{{ shout }}" + chatml("{{ message.content }}")
    rendering = Rendering(tokenizer)
    rows = [
        TrainingRow("rows, row 0", [{"role": "user", "content": f"Hi {number}"}], None, tools, keywords)
        for number in range(5)
        for tools in (None, [{"type": "function"}])
        for keywords in ({}, {"shout": "!"}, {"shout": 1}, {"shout": True}, {"shout": ["?"]})
    ]
    assert rendering.texts(rows, body, ProblemLog()) == render(tokenizer, rows, body, ProblemLog())

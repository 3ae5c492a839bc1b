"""What a template writes of the first messages alone is told from one rendering of all, or left open; never wrongly."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from sartor.data.targets.prover import Prover
from sartor.data.templates.provenance.render import Renderer

from .chat_templates import HOSTILE, PUBLISHED, SPECIAL, chatml
from .test_trl_templates import FOLDER

LOOKING = {
    "at the number of messages": chatml("{{ messages|length }}{{ message.content }}"),
    "at the last message": chatml("{{ messages[-1].role }}{{ message.content }}"),
    "at the next message": chatml("{{ loop.nextitem.role if loop.nextitem is defined }}{{ message.content }}"),
    "whether it is the last": chatml("{{ '!' if loop.last }}{{ message.content }}"),
    "whether the second is the last": chatml("{{ '!' if loop.index0 == 1 and loop.last }}{{ message.content }}"),
    "how many are left": chatml("{{ loop.revindex }}{{ message.content }}"),
    "at the third message": chatml("{{ messages[2].role if messages[2] is defined }}{{ message.content }}"),
    "at all of them backwards": chatml("{{ message.content }}", loop="for message in messages|reverse"),
    "at those of the user first": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    + chatml("{{ message.content }}"),
    "at a part of them": chatml("{{ message.content }}", loop="for message in messages[:3]"),
    "at whether there are two": chatml("{{ '!' if messages[1:] }}{{ message.content }}"),
    "at what the loop has left": "{% set ns = namespace(n=0) %}{% for m in messages %}{{ m.content }}"
    "{% set ns.n = ns.n + 1 %}{% endfor %}{{ '?' if add_generation_prompt and ns.n == 2 }}",
    "at what the loop has left, in its own part": "{% set ns = namespace(n=0) %}{% if 1 %}{% for m in messages %}"
    "{{ m.content }}{% set ns.n = ns.n + 1 %}{% endfor %}{{ 'odd' if ns.n is odd }}{% endif %}",
    "at the last message behind the loop": "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{{ '>' if add_generation_prompt and messages[-1].role == 'tool' }}",
    "at the prompt within the loop": chatml("{{ '!' if add_generation_prompt }}{{ message.content }}"),
    "at the prompt before the loop": "{{ '!' if add_generation_prompt }}" + chatml("{{ message.content }}"),
    "through a macro": "{% macro last() %}{{ messages[-1].role }}{% endmacro %}{% for m in messages %}{{ m.content }}"
    "{% endfor %}{{ last() if add_generation_prompt }}",
    "whether they are others": chatml("{{ '!' if messages == [1] or messages != [2] }}{{ message.content }}"),
    "in a block": "{% set all %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}{{ all }}",
    "twice": "{% for m in messages %}{{ m.content }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}",
    "as a sum": "{% for m in messages + [{'role': 'x', 'content': 'y'}] %}{{ m.content }}{% endfor %}",
}
"""What templates may look at that lies behind a message."""
TOLD = {
    "as a sum": [],
    "at a part of them": [1, 2, 3],
    "at all of them backwards": [],
    "at the last message": [1],
    "at the number of messages": [1],
    "at the prompt before the loop": [],
    "at the prompt within the loop": [],
    "at the third message": [1, 3, 4, 5],
    "at what the loop has left": [],
    "at what the loop has left, in its own part": [],
    "how many are left": [1],
    "in a block": [],
    "whether they are others": [1],
}
"""Of these what is told of six messages; of the others, which only the last turn's text depends on, all is."""
KNOWN = {
    "plain": chatml("{{ message.role }} {{ message.content }}"),
    "the first by its number": "{{ messages[0].role }}" + chatml("{{ message.content }}"),
    "without the first": chatml("{{ message.content }}", loop="for message in messages[1:]"),
    "a name for the rest": "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
    + chatml("{{ message.content }}", loop="for message in rest"),
    "the one before": chatml("{{ loop.previtem.role if loop.previtem is defined }}{{ message.content }}"),
    "counted": chatml("{{ loop.index0 }}{{ '!' if loop.first }}{{ message.content }}"),
    "in one of two ways": "{% if tools %}{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}{% else %}"
    "{% for m in messages %}[{{ m.content }}]{% endfor %}{% endif %}{{ '>' if add_generation_prompt }}",
}
ALL = {
    **{name: template.source for name, template in {**PUBLISHED, **HOSTILE}.items()},
    **{file.name: file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.jinja"))},
    **LOOKING,
    **KNOWN,
}


def conversation(chance: random.Random, num_turns: int) -> list[dict[str, Any]]:
    """Perhaps a system message, and turns with texts that templates look for."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be."}] if chance.random() < 0.5 else []
    for number in range(num_turns):
        messages.append({"role": "user", "content": chance.choice(["Hi", "<tool_response>x</tool_response>", "a b"])})
        answer: dict[str, Any] = {"role": "assistant", "content": chance.choice(["Yo", "<think>x</think>no", "é"])}
        if chance.random() < 0.3:
            answer["reasoning_content"] = f"because {number}"
        if chance.random() < 0.3:
            call = {"name": "find", "arguments": {"what": number}}
            answer["tool_calls"] = [{"id": "call00001", "type": "function", "function": call}]
            messages += [answer, {"role": "tool", "tool_call_id": "call00001", "name": "find", "content": "it"}]
            answer = {"role": "assistant", "content": "found"}
        messages.append(answer)
    return messages


def told(source: str, messages: list[dict[str, Any]], tools: Any = None) -> list[int]:
    """The numbers of messages whose text is told from the whole: it must be transformers', with and without prompt."""
    renderer = Renderer(source, SPECIAL)
    prepared = renderer.conversation(messages, tools, {})
    try:
        whole = renderer.traced(prepared, len(messages))
    except Exception:
        return []
    found = []
    for number in range(1, len(messages)):
        for prompt in (False, True):
            text = renderer.beginning(whole, prepared, number, prompt=prompt)
            if text is not None:
                assert text == renderer.text(prepared, number, add_generation_prompt=prompt)
                found += [number] * prompt
    return found


@pytest.mark.parametrize("name", sorted(ALL))
def test_what_is_told_of_a_beginning_is_what_transformers_writes(name: str) -> None:
    chance = random.Random(name)
    for number in range(12):
        told(ALL[name], conversation(chance, 1 + number % 4))


def six() -> list[dict[str, Any]]:
    return [{"role": "user" if n % 2 else "assistant", "content": f"m{n}"} for n in range(6)]


@pytest.mark.parametrize("name", sorted(LOOKING))
def test_nothing_is_told_where_an_earlier_turn_may_have_looked_ahead(name: str) -> None:
    assert told(LOOKING[name], six()) == TOLD.get(name, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_beginnings_are_told_where_a_template_goes_front_to_back(name: str) -> None:
    assert told(KNOWN[name], six()) == [1, 2, 3, 4, 5]


def steps(count: int) -> list[dict[str, Any]]:
    """A question, and many calls of a tool."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Find all."}]
    for number in range(count):
        call = {"name": "find", "arguments": {"what": f"thing {number}"}}
        calls = [{"id": "call00001", "type": "function", "function": call}]
        messages.append({"role": "assistant", "content": f"I look for {number}.", "tool_calls": calls})
        messages.append({"role": "tool", "tool_call_id": "call00001", "name": "find", "content": "it " * 20})
    return [*messages, {"role": "assistant", "content": "done"}]


@pytest.mark.parametrize("name", ["qwen2_5.jinja", "qwen3.jinja", "lfm2.jinja"])
def test_each_step_of_a_long_conversation_is_told(name: str) -> None:
    tools = [{"type": "function", "function": {"name": "find", "description": "d", "parameters": {}}}]
    assert told(ALL[name], steps(8), tools) == list(range(1, 18))


@pytest.mark.parametrize("name", ["qwen2_5.jinja", "llama3_1.jinja"])
def test_a_long_conversation_takes_time_by_its_length_not_by_its_square(name: str) -> None:
    """Four times the steps take about six times as long; sixteen times where each prompt is rendered."""
    prover = Prover(ALL[name], SPECIAL, ("<|im_end|>", "<|eot_id|>"))

    def seconds(count: int) -> float:
        taken = []
        for _ in range(3):
            start = time.process_time()
            assert len(prover.prove(steps(count)).turns) == count + 1
            taken.append(time.process_time() - start)
        return min(taken)

    seconds(10)
    assert seconds(160) < 13 * seconds(40)

"""What a template writes of the first messages alone is told from one rendering of all, or left open; never wrongly."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from sartor.data.targets.prompts import Prompts
from sartor.data.targets.provenance.render import Renderer
from sartor.data.targets.prover import Prover

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


def known(source: str, messages: list[dict[str, Any]]) -> int:
    """How many beginnings are told from the whole; each must be transformers' own, with and without the prompt."""
    renderer = Renderer(source, SPECIAL)
    prepared = renderer.conversation(messages, None, {})
    try:
        whole = renderer.traced(prepared, len(messages))
    except Exception:
        return 0
    end = Prompts(renderer, source).probe(prepared).prompt_end
    count = 0
    for number, start in enumerate(whole.starts or ()):
        if start >= 0 and number:
            count += 1
            assert renderer.text(prepared, number) == whole.text[:start]
            if end is not None:
                prompt = renderer.text(prepared, number, add_generation_prompt=True)
                assert prompt == whole.text[:start] + end
    return count


@pytest.mark.parametrize("name", sorted(ALL))
def test_what_is_told_of_a_beginning_is_what_transformers_writes(name: str) -> None:
    chance = random.Random(name)
    for number in range(12):
        known(ALL[name], conversation(chance, 1 + number % 4))


@pytest.mark.parametrize("name", sorted(LOOKING))
def test_nothing_is_told_where_a_template_may_look_ahead(name: str) -> None:
    messages = [{"role": "user" if n % 2 else "assistant", "content": f"m{n}"} for n in range(6)]
    renderer = Renderer(LOOKING[name], SPECIAL)
    starts = renderer.traced(renderer.conversation(messages, None, {}), 6).starts
    told = {"at the third message": 3, "at whether there are two": 4}  # of beginnings that hold what was looked at
    assert (starts is None) == (name not in told)
    assert known(LOOKING[name], messages) == told.get(name, 0)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_beginnings_are_told_where_a_template_goes_front_to_back(name: str) -> None:
    messages = [{"role": "user" if n % 2 else "assistant", "content": f"m{n}"} for n in range(6)]
    assert known(KNOWN[name], messages) == 5


def test_a_long_conversation_takes_time_by_its_length_not_by_its_square() -> None:
    """Of a template that goes front to back: four times the turns take less than eight times as long."""
    prover = Prover(PUBLISHED["chatml"].source, SPECIAL, ("<|im_end|>",))

    def seconds(num_turns: int) -> float:
        messages = [
            {"role": role, "content": f"{role} {number} " * 20}
            for number in range(num_turns)
            for role in ("user", "assistant")
        ]
        taken = []
        for _ in range(3):
            start = time.process_time()
            assert len(prover.prove(messages).turns) == num_turns
            taken.append(time.process_time() - start)
        return min(taken)

    seconds(10)
    assert seconds(400) < 8 * seconds(100)

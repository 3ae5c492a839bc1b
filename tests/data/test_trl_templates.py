"""For every template of which trl has a training twin with marks: what is proven of the original is what trl marks.

Run with `-s` for the table.  *equal*: the same text, but for whitespace behind the end token.  *prompt*: trl also
marks text that the prompt already gives (`<think>`), which a model never generates.  *rewritten*: trl's twin writes
the answer otherwise than the template (with its reasoning in earlier turns), and what is proven is the end of that.
*header*: with a weaker `target_start`, trl also marks a header, or the start of a thinking that is not the prompt's.
*raises*: the template refuses the conversation.  *wrong* must not happen.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from sartor.data.targets.prover import Proof, Prover, Rule, Start, Unproven

trl = pytest.importorskip("trl")
FOLDER = Path(trl.__file__).parent / "chat_templates"
SUFFIX = "_training.jinja"

END_TOKENS = {
    "cohere": ["<|END_OF_TURN_TOKEN|>"],
    "deepseek": ["<｜end▁of▁sentence｜>"],
    "diffusion_gemma": ["<turn|>"],
    "gemma": ["<eos>", "<end_of_turn>"],
    "glm4moe": ["<|endoftext|>", "<|user|>", "<|observation|>"],
    "gptoss": ["<|return|>", "<|call|>"],
    "idefics3": ["<end_of_utterance>"],
    "lfm2": ["<|im_end|>"],
    "llama3": ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"],
    "llava_next": ["</s>"],
    "muse_glimmer": ["<|eot|>"],
    "nemotron": ["<|im_end|>"],
    "phi3": ["<|endoftext|>", "<|end|>"],
    "qwen": ["<|im_end|>", "<|endoftext|>"],
    "smolvlm": ["<end_of_utterance>"],
}
"""What the models' generation configurations stop at; the first is the tokenizer's eos_token."""
WITH_PARTS = ("idefics3", "llava_next", "smolvlm")
"""Templates that take content as a list of parts only."""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells it.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALLS = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}]


Conversation = tuple[list[dict[str, Any]], Any]
"""Messages and tools."""


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


RAIN = {"role": "tool", "name": "weather", "content": "rain"}
CONVERSATIONS: dict[str, Conversation] = {
    "one": ([user("Hi"), answer("Yo")], None),
    "two": ([user("Hi"), answer("Yo"), user("And?"), answer("No.")], None),
    "three": ([user("Hi"), answer("Yo"), user("And?"), answer("No."), user("Hi"), answer("Yo")], None),
    "system": ([{"role": "system", "content": "Be grim."}, user("Hi"), answer("Yo")], None),
    "thinking": ([user("Hi"), answer("Yo", reasoning_content="Hm")], None),
    "thinking twice": (
        [user("Hi"), answer("Yo", reasoning_content="Hm"), user("And?"), answer("No", reasoning_content="Oh")],
        None,
    ),
    "inline thinking": ([user("Hi"), answer("<think>\nHm\n</think>\n\nYo")], None),
    "a call alone": ([user("Hi"), answer("", tool_calls=CALLS), RAIN, answer("wet")], TOOLS),
    "a call with text": (
        [user("Hi"), answer("So", tool_calls=CALLS), RAIN, answer("wet"), user("Thanks"), answer("Fine")],
        TOOLS,
    ),
    "whitespace": ([user(" Hi \n"), answer("\n Yo \n\n")], None),
    "answer first": ([answer("Welcome"), user("Hi"), answer("Yo")], None),
    "two answers": ([user("Hi"), answer("Yo"), answer("Yo again")], None),
}

NAMES = sorted(file.name.removesuffix(SUFFIX) for file in FOLDER.glob(f"*{SUFFIX}"))
OUTCOMES = ("equal", "prompt", "rewritten", "refused", "raises", "wrong")

EXPECTED = {
    "cohere": (12, 0, 0, 0, 4, 0),
    "cohere2": (12, 0, 0, 0, 4, 0),
    "deepseek_r1_distill": (0, 0, 0, 12, 0, 0),
    "deepseekv3": (0, 0, 0, 10, 2, 0),
    "diffusion_gemma": (14, 0, 0, 3, 0, 0),
    "gemma": (11, 0, 0, 0, 5, 0),
    "gemma3": (12, 0, 0, 0, 4, 0),
    "glm4moe": (0, 0, 0, 12, 0, 0),
    "gptoss": (0, 6, 0, 7, 0, 0),
    "idefics3": (19, 0, 0, 1, 0, 0),
    "lfm2": (19, 0, 0, 1, 0, 0),
    "lfm2_v2": (21, 0, 0, 0, 0, 0),
    "llama3": (19, 0, 0, 1, 0, 0),
    "llava_next": (0, 0, 0, 10, 2, 0),
    "muse_glimmer": (0, 18, 0, 2, 0, 0),
    "nemotron_3_5_lightning": (0, 2, 0, 10, 0, 0),
    "nemotron_3_nano": (0, 2, 0, 10, 0, 0),
    "nemotron_3_super": (0, 2, 0, 10, 0, 0),
    "nemotron_3_ultra": (0, 2, 0, 10, 0, 0),
    "phi3": (17, 0, 0, 2, 0, 0),
    "phi3_5": (17, 0, 0, 2, 0, 0),
    "qwen2_5": (0, 21, 0, 0, 0, 0),
    "qwen2_5_vl": (19, 0, 0, 1, 0, 0),
    "qwen3": (12, 0, 9, 0, 0, 0),
    "qwen3_5_nothink": (0, 7, 0, 7, 0, 0),
    "qwen3_5_think": (0, 9, 0, 5, 0, 0),
    "qwen3_6": (0, 9, 0, 5, 0, 0),
    "qwen3_8": (0, 21, 0, 0, 0, 0),
    "qwen3_instruct_2507": (21, 0, 0, 0, 0, 0),
    "qwen3_vl": (21, 0, 0, 0, 0, 0),
    "smolvlm": (19, 0, 0, 1, 0, 0),
}
"""The table for trl 1.16, turns by outcome; refused and raises count conversations."""


REFUSED = [122, 80, 45]
"""Conversations that are refused with `target_start` proven, variant and partial."""


_HEADER = re.compile(r"(<｜Assistant｜>)?\n?(<think>\n?)?(</think>)?\n*")
"""What trl marks before an answer that begins behind the header, or behind the start of its thinking."""


def end_tokens(name: str) -> list[str]:
    return next(END_TOKENS[prefix] for prefix in sorted(END_TOKENS, key=len, reverse=True) if name.startswith(prefix))


def outcomes(name: str, conversations: dict[str, Conversation], start: Start = Start.PROVEN) -> Counter[str]:
    """What comes out for the turns of conversations with one template; a conversation that is refused counts once."""
    ends = end_tokens(name)
    special = {"bos_token": "<BOS>", "eos_token": ends[0]}
    prover = Prover((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), special, ends, start=start)
    twin = (FOLDER / f"{name}{SUFFIX}").read_text(encoding="utf-8")
    found: Counter[str] = Counter()
    for label, (messages, tools) in conversations.items():
        if name.startswith(WITH_PARTS):
            messages = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
        try:
            proof = prover.prove(messages, tools)
            twin_text, marked = marked_by_trl(twin, messages, tools, special, ends)
        except Unproven:
            found["refused"] += 1
            continue
        except Exception:
            found["raises"] += 1
            continue
        assert len(marked) == len(proof.turns), (name, label, marked)
        for number, text in enumerate(marked):
            prompt = prompt_of(name, messages, tools, proof.turns[number].message, special)
            outcome = compare(proof, number, text, prompt, differs=twin_text != proof.text)
            found[outcome] += 1
            assert outcome != "wrong", (name, label, proof.text, proof.turns[number], text)
    return found


def marked_by_trl(
    template: str, messages: list[Any], tools: Any, special: dict[str, str], ends: list[str]
) -> tuple[str, list[str]]:
    """trl's text, and what lies between the marks of trl's template; an answer marked in pieces is one."""
    texts, places = render_jinja_template(
        [messages], tools=tools, chat_template=template, return_assistant_tokens_mask=True, **special
    )
    merged: list[tuple[int, int]] = []
    for start, end in places[0]:
        text = texts[0]
        is_unfinished = bool(merged) and start == merged[-1][1] and not text[:start].rstrip().endswith(tuple(ends))
        if is_unfinished or (merged and text[start:end].strip() in ends):
            start = merged.pop()[0]
        merged.append((start, end))
    return texts[0], [texts[0][start:end] for start, end in merged]


def prompt_of(name: str, messages: list[Any], tools: Any, number: int, special: dict[str, str]) -> str:
    """The prompt for a message; for the first one, that after some question: only its end is compared."""
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    before = messages[:number] or [{**messages[0], "role": "user"}]
    texts, _ = render_jinja_template(
        [before], tools=tools, chat_template=template, add_generation_prompt=True, **special
    )
    return str(texts[0])


def compare(proof: Proof, number: int, marked: str, prompt: str, *, differs: bool) -> str:
    turn = proof.turns[number]
    target = proof.text[turn.start : turn.end]
    marked = marked.rstrip()
    if marked == target:
        return "equal"
    if turn.rule in (Rule.VARIANT, Rule.PARTIAL) and _HEADER.fullmatch(marked.removesuffix(target)):
        return "header"
    if marked.endswith(target):
        if prompt.endswith(marked.removesuffix(target)):
            return "prompt"
        if differs:
            return "rewritten"
    return "wrong"


def test_what_is_proven_is_what_trl_marks() -> None:
    table = {name: outcomes(name, CONVERSATIONS) for name in NAMES}
    total: Counter[str] = sum(table.values(), Counter())
    print(f"\n{'':26}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES))
    for name, found in [*table.items(), ("all", total)]:
        print(f"{name:26}" + "".join(f"{found[outcome]:10}" for outcome in OUTCOMES))
    assert total["wrong"] == 0
    assert {name: tuple(found[outcome] for outcome in OUTCOMES) for name, found in table.items()} == EXPECTED


def test_weaker_starts_prove_more_and_differ_from_trls_marks_by_the_header_alone() -> None:
    totals = {start: sum((outcomes(name, CONVERSATIONS, start) for name in NAMES), Counter()) for start in Start}
    for start, found in totals.items():
        print(f"{start}: {dict(found)}")
    assert [found["wrong"] for found in totals.values()] == [0, 0, 0]
    refused = [totals[start]["refused"] for start in Start]
    assert refused == sorted(refused, reverse=True)
    assert refused == REFUSED
    assert totals[Start.PROVEN]["header"] == 0


PIECES = ["a", "é", "\n", " ", "Yo", "assistant", "###", ":", "x y", "\t", "<tool_call>", "model\n", "{", "}", "'", '"']
MARKS = ["<think>", "</think>", "<|im_start|>", "<|assistant|>", "<start_of_turn>model\n"]


def random_conversation(draw: random.Random, pieces: list[str]) -> Conversation:
    def text() -> str:
        return "".join(draw.choices(pieces, k=draw.randint(0, 5))) + draw.choice("abc")

    messages = [{"role": "system", "content": text()}] if draw.random() < 0.2 else []
    for _ in range(draw.randint(1, 3)):
        reasoning = {"reasoning_content": text()} if draw.random() < 0.3 else {}
        messages.append(user(text()))
        if draw.random() < 0.25:
            calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": text(), "days": 3}}}]
            messages += [answer(text(), tool_calls=calls, **reasoning), {**RAIN, "content": text()}]
            reasoning = {}
        messages.append(answer(text(), **reasoning))
    return messages, TOOLS if draw.random() < 0.5 else None


def test_random_conversations_are_proven_as_trl_marks_them_or_refused() -> None:
    draw = random.Random(11)
    found: Counter[str] = Counter()
    for name in NAMES:
        found += outcomes(
            name, {str(number): random_conversation(draw, PIECES + MARKS * (number % 2)) for number in range(8)}
        )
    assert found["wrong"] == 0
    assert found["equal"] > 200
    assert found["prompt"] > 40

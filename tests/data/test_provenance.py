"""Every character of a rendered conversation is traced to its message, and the text is transformers' own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from sartor.data.templates.provenance.render import Renderer, TracedText
from sartor.data.templates.provenance.shadow import MIX, OUTSIDE, Kind, Shadow, message_of, sole_tag, tag_of, tags_of

from .chat_templates import CHATML, CONVERSATION, HOSTILE, PUBLISHED, QWEN3, SPECIAL, chatml
from .test_trl_templates import CALLS, CONVERSATIONS, FOLDER, WITH_PARTS

LETTERS = st.text(alphabet=" \n\tabABß<é|", max_size=12)
METHODS: dict[str, Callable[[str, str], Any]] = {
    "strip": lambda text, other: text.strip(),
    "strip characters": lambda text, other: text.strip(other),
    "lstrip": lambda text, other: text.lstrip(other or None),
    "rstrip": lambda text, other: text.rstrip(other or None),
    "split": lambda text, other: text.split(other or None),
    "split once": lambda text, other: text.split(other or None, 1),
    "rsplit once": lambda text, other: text.rsplit(other or None, 1),
    "splitlines": lambda text, other: text.splitlines(),
    "splitlines with ends": lambda text, other: text.splitlines(True),
    "partition": lambda text, other: text.partition(other or "a"),
    "rpartition": lambda text, other: text.rpartition(other or "a"),
    "removeprefix": lambda text, other: text.removeprefix(other),
    "removesuffix": lambda text, other: text.removesuffix(other),
    "from the second": lambda text, other: text[1:],
    "backwards": lambda text, other: text[::-1],
    "an item": lambda text, other: text[-1] if text else text,
    "characters": lambda text, other: list(text),
    "itself": lambda text, other: str(text),
    "added": lambda text, other: text + text[:3] + other,
    "added to": lambda text, other: other + text,
    "thrice": lambda text, other: 3 * text,
    "joined": lambda text, other: Shadow(", ").join([text, other, text]),
    "replace": lambda text, other: text.replace("a", other + "X"),
    "replace once": lambda text, other: text.replace(other or "b", "", 1),
    "swapcase": lambda text, other: text.swapcase(),
    "center": lambda text, other: text.center(20),
    "expandtabs": lambda text, other: text.expandtabs(),
    "zfill": lambda text, other: text.zfill(20),
}


def parts_of(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=60, deadline=None)
@given(text=LETTERS, other=st.text(alphabet=" ab\n", max_size=2))
def test_a_shadow_does_to_its_tags_what_it_does_to_its_text(name: str, text: str, other: str) -> None:
    positions = "".join(chr(1000 + number) for number in range(len(text)))
    traced, plain = METHODS[name](Shadow(text, positions), other), METHODS[name](text, other)
    assert parts_of(traced) == parts_of(plain)
    for part in parts_of(traced):
        tags = tags_of(part)
        assert len(tags) == len(part)
        for character, tag in zip(part, tags, strict=True):
            if ord(tag) >= 1000 and name not in ("replace", "swapcase", "center", "expandtabs", "zfill"):
                assert text[ord(tag) - 1000] == character
    if name in ("strip", "split", "from the second", "backwards", "characters", "itself"):
        assert all(ord(tag) >= 1000 for part in parts_of(traced) for tag in tags_of(part))


def test_text_whose_length_changes_is_tagged_as_a_whole() -> None:
    content, other = tag_of(1, Kind.CONTENT), tag_of(2, Kind.CONTENT)
    assert tags_of(Shadow("aß", content * 2).upper()) == content * 3
    assert tags_of(Shadow("aß", content + other).upper()) == MIX * 3


def test_the_sole_source_is_named_only_where_there_is_one() -> None:
    content, reasoning, literal = (tag_of(3, kind) for kind in (Kind.CONTENT, Kind.REASONING, Kind.LITERAL))
    assert sole_tag("plain") == OUTSIDE
    assert sole_tag({"a": [Shadow("x", reasoning)], "b": 3}) == reasoning
    assert sole_tag([Shadow("x", literal), Shadow("y", reasoning)]) == reasoning
    assert sole_tag([Shadow("x", content), Shadow("y", reasoning)]) == content
    assert sole_tag([Shadow("x", content), Shadow("y", tag_of(4, Kind.CONTENT))]) == MIX


def traced(source: str, messages: list[dict[str, Any]], *, tools: Any = None, prompt: bool = False) -> TracedText:
    renderer = Renderer(source, SPECIAL)
    return renderer.traced(renderer.conversation(messages, tools, {}), len(messages), add_generation_prompt=prompt)


def picture(text: TracedText) -> str:
    """One letter for each tag.

    Digits for a template's own text, letters for contents, R, X for reasoning, arguments.
    """
    kinds = {Kind.CONTENT: "abcdef", Kind.LITERAL: "012345", Kind.REASONING: "RRRRRR", Kind.ARGUMENTS: "XXXXXX"}
    letters = {tag_of(number, kind): kinds[kind][number] for number in range(6) for kind in Kind}
    return "".join({OUTSIDE: ".", MIX: "!"}.get(tag) or letters[tag] for tag in text.tags)


def test_the_example_of_the_documentation() -> None:
    text = traced(CHATML, CONVERSATION[:2])
    assert text.text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    assert picture(text) == "00000000000000000aa000000000001111111111111111111111bb11111111111"
    assert picture(traced(CHATML, CONVERSATION[:1], prompt=True)).endswith("0" + "." * len("<|im_start|>assistant\n"))


@pytest.mark.parametrize("name", sorted({*PUBLISHED, *HOSTILE}))
def test_the_text_of_each_template_is_transformers(name: str) -> None:
    source = {**PUBLISHED, **HOSTILE}[name].source
    for number in range(1, 5):
        for prompt in (False, True):
            text = traced(source, CONVERSATION[:number], prompt=prompt)
            expected, _ = render_jinja_template(
                [CONVERSATION[:number]], chat_template=source, add_generation_prompt=prompt, **SPECIAL
            )
            assert text.text == expected[0]
            assert len(text.tags) == len(text.text)


def test_the_text_of_all_of_trls_templates_is_transformers() -> None:
    num_rendered = 0
    for file in sorted(FOLDER.glob("*.jinja")):
        source = file.read_text(encoding="utf-8")
        renderer = Renderer(source, SPECIAL)
        for messages, tools in CONVERSATIONS.values():
            if file.name.startswith(WITH_PARTS):
                messages = [
                    {**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages
                ]
            try:
                expected, _ = render_jinja_template([messages], tools=tools, chat_template=source, **SPECIAL)
            except Exception:
                continue
            text = renderer.traced(renderer.conversation(messages, tools, {}), len(messages))
            assert text.text == expected[0], file.name
            num_rendered += 1
    assert num_rendered > 700


def test_reasoning_and_arguments_are_told_from_content() -> None:
    messages = [CONVERSATION[0], {"role": "assistant", "content": "Yo", "reasoning_content": "Hm", "tool_calls": CALLS}]
    text = traced(QWEN3, messages)
    start = text.text.index("<think>")
    assert text.text[start:] == (
        "<think>\nHm\n</think>\n\nYo\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>\n'
    )
    assert picture(text)[start:] == (
        "1" * 8 + "RR" + "1" * 11 + "bb" + "1" * len('\n<tool_call>\n{"name": "weather", "arguments": ')
        + "X" * len('{"city": "Paris"}') + "1" * len("}\n</tool_call><|im_end|>\n")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("written", "tags"),
    [
        ("{{ message.content|indent }}", "bb"),
        ("{{ (message.content ~ '\\n' ~ message.content)|indent }}", "b" * len("Yo\n    Yo")),
        ("{{ message.content|title }}", "bb"),
        ("{{ message.content|safe }}", "bb"),
        ("{{ message.content|tojson }}", "bbbb"),
        ("{{ '<%s>'|format(message.content) }}", "bbbb"),
        ("{{ '<%s>' % message.content }}", "bbbb"),
        ("{{ '<{}>'.format(message.content) }}", "bbbb"),
        ("{{ '-'.join([message.content, message.role, message.content]) }}", "bb11111111111bb"),
        ("{{ [message.content, 'x']|join('-') }}", "bb11"),
        ("{{ message.content|list|join }}", "bb"),
        ("{{ message.content|string|upper|trim|replace('Y', 'z') }}", "bb"),
        ("{{ 'Yo and more'.replace('Yo', message.content) }}", "bb111111111"),
        ("{{ [message.content]|first ~ loop.index }}", "bb1"),
        ("{{ ([message]|map(attribute='content')|list)[0] }}", "bb"),
        ("{{ (messages|selectattr('role', 'equalto', 'assistant')|list)[0].content[0] }}", "b"),
        ("{{ message['content'][::-1] }}", "bb"),
        ("{{ [messages[0].content, message.content]|tojson }}", "!" * 12),
        ("{{ messages[0].content + message.content }}", "aabb"),
        ("{{ [message.content] }}", "bbbbbb"),
        ("{{ {'x': message.content}.x|default('y') }}", "bb"),
        ("{{ message.nothing|default(message.content) }}", "bb"),
        ("{{ (message.content ~ '') * 2 }}", "bbbb"),
        ("{{ message.get('content') }}", "bb"),
        ("{% for key, value in message.items() %}{% if key == 'content' %}{{ value }}{% endif %}{% endfor %}", "bb"),
        ("{% set x %}{{ message.content }}!{% endset %}{{ x }}", "bb1"),
    ],
)
def test_what_is_made_of_a_content_is_tagged_so(written: str, tags: str) -> None:
    source = chatml("{% if message.role == 'assistant' %}" + written + "{% endif %}")
    assert picture(traced(source, CONVERSATION[:2])) == tags


PIECES = [
    "a",
    "é",
    "ß",
    " ",
    "\n",
    "</think>",
    "<think>",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "[/INST]",
    "{{ x }}",
    "'",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
CONTENTS = st.tuples(TEXTS, TEXTS).map("x".join)  # an empty content leaves no character that could be tagged
RENDERERS = {name: Renderer(template.source, SPECIAL) for name, template in {**PUBLISHED, **HOSTILE}.items()}


@pytest.mark.parametrize("name", RENDERERS)
@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(CONTENTS, min_size=4, max_size=4),
    reasoning=CONTENTS,
    changed=st.integers(0, 3),
    instead=CONTENTS,
)
def test_changing_a_message_moves_nothing_outside_of_it(
    name: str, texts: list[str], reasoning: str, changed: int, instead: str
) -> None:
    messages = [{**message, "content": text} for message, text in zip(CONVERSATION, texts, strict=True)]
    messages[3]["reasoning_content"] = reasoning
    others = copy.deepcopy(messages)
    others[changed]["content"] = instead
    before, after = (without(RENDERERS[name], version, changed) for version in (messages, others))
    assert before == after


def without(renderer: Renderer, messages: list[dict[str, Any]], number: int) -> list[tuple[str, str]]:
    """Characters and tags of all but one message; mixed text is of any."""
    text = renderer.traced(renderer.conversation(messages, None, {}), len(messages))
    return [
        (character, tag)
        for character, tag in zip(text.text, text.tags, strict=True)
        if tag != MIX and message_of(tag) != number
    ]

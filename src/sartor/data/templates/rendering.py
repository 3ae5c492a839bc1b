"""Renders conversations with the tokenizer's chat template, or with the built-in one where it has none.

What comes in: checked rows and a tokenizer.  What goes out: their texts.  What it keeps true: a template the
tokenizer has is used as it is; an error it raises names the row.

The built-in template is ChatML.  A turn of the assistant ends with the tokenizer's own end-of-text token, because
that is the token `generate()` stops at.  Where the vocabulary has `<|im_end|>`, that becomes the end-of-text token,
and the result is plain ChatML.  Where it has not, `<|im_start|>` and `<|im_end|>` are ordinary text of several
tokens, and an answer ends with the end-of-text token that the base model has known all along; no embedding is added,
so an adapter can learn it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from sartor.data.reading.problems import ProblemLog
from sartor.data.rows.formats import TrainingRow
from sartor.errors import ConfigurationError

T = TypeVar("T")

IM_START, IM_END = "<|im_start|>", "<|im_end|>"

CHATML = """\
{%- if tools %}{{ raise_exception('the built-in template has no tools; set tokenizer.chat_template') }}{% endif %}
{%- for message in messages %}
    {%- if message.tool_calls or message.reasoning_content or message.thinking %}
        {{- raise_exception('the built-in template shows only role and content; set tokenizer.chat_template') }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + eos_token }}{% endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""The built-in template, with marks around what the assistant writes."""

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def adopt_chatml(tokenizer: Any) -> str | None:
    """Give a tokenizer without chat template the built-in one, and say so; leave one that has a template alone.

    Changes `tokenizer.chat_template`, and `tokenizer.eos_token` to `<|im_end|>` where the vocabulary has that: the
    caller then has to tell the model's configurations, as after setting it by hand.

    Returns:
        A sentence for the user, or None where the tokenizer has a template.

    Raises:
        ConfigurationError: neither `<|im_end|>` nor an end-of-text token is there: no answer could ever end.
    """
    if tokenizer.chat_template is not None:
        return None
    vocabulary = tokenizer.get_vocab()
    has_marks = IM_START in vocabulary and IM_END in vocabulary
    if has_marks:
        tokenizer.eos_token = IM_END
    if tokenizer.eos_token is None:
        raise ConfigurationError(
            "The tokenizer has neither a chat template nor an end-of-text token, so no answer could end. Set "
            "tokenizer.eos_token or tokenizer.chat_template."
        )
    tokenizer.chat_template = CHATML
    said = "The tokenizer has no chat template: the built-in chatml is used"
    if has_marks:
        return f"{said}; an answer ends with {tokenizer.eos_token}."
    return (
        f"{said}. Its marks {IM_START} and {IM_END} are not in the vocabulary and stay ordinary text; an answer "
        f"ends with {tokenizer.eos_token}."
    )


def template_of(tokenizer: Any) -> str:
    """The tokenizer's chat template; of several named ones the one called `default`."""
    template = tokenizer.chat_template
    return template["default"] if isinstance(template, dict) else template


def has_generation_marks(tokenizer: Any) -> bool:
    """Whether the template marks what the assistant writes with `{% generation %}`."""
    return _GENERATION_MARK.search(template_of(tokenizer)) is not None


def render(tokenizer: Any, rows: Sequence[TrainingRow], problems: ProblemLog, *, prompt: bool = False) -> list[str]:
    """Texts of the rows' conversations, in order.  A row that the template refuses is noted, and its text is empty.

    Args:
        prompt: whether only their prompts are rendered, as an answer is asked for.
    """

    def texts(part: Sequence[TrainingRow]) -> list[str]:
        rendered: list[str] = tokenizer.apply_chat_template(
            [row.prompt if prompt else row.messages for row in part],
            tools=tools_of(part[0]),
            tokenize=False,
            add_generation_prompt=prompt,
            **part[0].template_keywords,
        )
        return rendered

    return _in_groups(rows, texts, problems, instead="")


def render_marked(
    tokenizer: Any, rows: Sequence[TrainingRow], problems: ProblemLog
) -> list[tuple[str, list[tuple[int, int]]]]:
    """Texts of the rows' conversations, each with the first and last + 1 character of its `{% generation %}` blocks."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def texts_and_blocks(part: Sequence[TrainingRow]) -> list[tuple[str, list[tuple[int, int]]]]:
        tools = tools_of(part[0])
        conversations = [
            [{key: value for key, value in message.items() if value is not None} for message in row.messages]
            for row in part
        ]
        texts, blocks = render_jinja_template(
            conversations,
            tools=tools,
            chat_template=tokenizer.get_chat_template(None, tools),
            return_assistant_tokens_mask=True,
            **{**tokenizer.special_tokens_map, **part[0].template_keywords},
        )
        return list(zip(texts, blocks, strict=True))

    return _in_groups(rows, texts_and_blocks, problems, instead=("", []))


def _in_groups(
    rows: Sequence[TrainingRow], process: Callable[[Sequence[TrainingRow]], list[T]], problems: ProblemLog, instead: T
) -> list[T]:
    """Results of all rows, of which neighbours with the same tools and keywords are rendered in one call."""
    return [result for group in _groups_of(rows) for result in _each_or_all(group, process, problems, instead)]


def _groups_of(rows: Sequence[TrainingRow]) -> Iterator[Sequence[TrainingRow]]:
    """Runs of neighbours with the same tools and template keywords: these can be rendered in one call."""
    first = 0
    for number in range(1, len(rows) + 1):
        if number == len(rows) or _context(rows[number]) != _context(rows[first]):
            yield rows[first:number]
            first = number


def _context(row: TrainingRow) -> tuple[Any, Any]:
    # As text: 1 and True are equal, but are not written alike
    return row.tools, repr(row.template_keywords) if row.template_keywords else ""


def tools_of(row: TrainingRow) -> Any:
    """The row's tools; they may be given as JSON text, the only form that a table keeps as it is."""
    return json.loads(row.tools) if isinstance(row.tools, str) else row.tools


def _each_or_all(
    rows: Sequence[TrainingRow], process: Callable[[Sequence[TrainingRow]], list[T]], problems: ProblemLog, instead: T
) -> list[T]:
    """Results of all rows in one call; where that fails, one by one, so that the rows at fault can be named.

    Templates are programs: they raise what they like, so every exception is taken for the row's.
    """
    try:
        return process(rows)
    except Exception as error:
        if len(rows) == 1:
            note_refusal(problems, rows[0], error)
            return [instead]
        return [result for row in rows for result in _each_or_all([row], process, problems, instead)]


def note_refusal(problems: ProblemLog, row: TrainingRow, error: Exception) -> None:
    """Note what a template raised for a row."""
    message = f"{type(error).__name__}: {error}. Mend the row, or the chat template."
    problems.add("refused by the chat template", row.where, message, row.body)

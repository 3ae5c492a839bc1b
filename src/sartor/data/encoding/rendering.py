"""Renders the conversations of one data set: those of a shape that is known by filling in their texts.

What comes in: checked rows and a tokenizer.  What goes out: their texts, and where marked blocks lie in them.  What it
keeps true: texts and blocks are those of transformers' own rendering (see `template`), which renders the first rows of
each shape, and every row that no form fits (see `targets.provenance.forms`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from sartor.data.encoding.template import render, render_marked
from sartor.data.encoding.tokenizing import is_stock
from sartor.data.reading.problems import ProblemLog
from sartor.data.rows.formats import Message, TrainingRow
from sartor.data.targets.provenance.forms import Filling, Forms, Shape, shape_of
from sartor.data.targets.provenance.outline import Outline, Outliner
from sartor.data.targets.provenance.render import IDENTIFIERS, Renderer

FIRST_ROWS = 8
"""Rows that are rendered before the others, so that these may have forms already."""

Blocks = list[tuple[int, int]]
Marked = tuple[str, Blocks]
MessagesOf = Callable[[TrainingRow], list[Message]]


class TextForm:
    """What the template writes for a shape of conversations."""

    def __init__(self, filling: Filling, outline: Outline) -> None:
        self._filling = filling
        self._outline = outline

    def filled(self, messages: Sequence[Message]) -> Marked | None:
        """Text and blocks of a conversation of the shape; None where the form does not fit."""
        values = self._filling.values(messages)
        return None if values is None else (self._outline.filled(values), self._outline.blocks(values))


class Rendering:
    """Renders with one tokenizer's template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._forms: dict[tuple[bool, bool], Forms[TextForm]] = {}

    def texts(
        self,
        rows: Sequence[TrainingRow],
        messages_of: MessagesOf,
        problems: ProblemLog,
        *,
        add_generation_prompt: bool = False,
    ) -> list[str]:
        """As `template.render`."""

        def render_rest(rest: Sequence[TrainingRow], of: MessagesOf, found: ProblemLog) -> list[Marked]:
            texts = render(self._tokenizer, rest, of, found, add_generation_prompt=add_generation_prompt)
            return [(text, []) for text in texts]

        how = (add_generation_prompt, False)
        return [text for text, _ in self._rendered(rows, messages_of, problems, render_rest, how)]

    def marked(self, rows: Sequence[TrainingRow], messages_of: MessagesOf, problems: ProblemLog) -> list[Marked]:
        """As `template.render_marked`."""

        def render_rest(rest: Sequence[TrainingRow], of: MessagesOf, found: ProblemLog) -> list[Marked]:
            return render_marked(self._tokenizer, rest, of, found)

        return self._rendered(rows, messages_of, problems, render_rest, (False, True))

    def _rendered(
        self,
        rows: Sequence[TrainingRow],
        messages_of: MessagesOf,
        problems: ProblemLog,
        render_rest: Callable[[Sequence[TrainingRow], MessagesOf, ProblemLog], list[Marked]],
        how: tuple[bool, bool],
    ) -> list[Marked]:
        """Texts and blocks of all rows; `how`: whether the prompt is asked for, and whether blocks are."""
        if how not in self._forms:
            self._forms[how] = Forms()
            first = self._rendered(rows[:FIRST_ROWS], messages_of, problems, render_rest, how)
            return first + self._rendered(rows[FIRST_ROWS:], messages_of, problems, render_rest, how)
        forms = self._forms[how]
        results: list[Marked | None] = []
        rest: list[tuple[int, Shape | None]] = []
        for row in rows:
            messages = messages_of(row)
            shape = shape_of(messages, row.tools, row.template_keywords)
            filled = None
            for form in () if shape is None else forms.of(shape):
                filled = form.filled(messages)
                if filled is not None:
                    break
            if filled is None:
                rest.append((len(results), shape))
            results.append(filled)
        rendered = render_rest([rows[number] for number, _ in rest], messages_of, problems) if rest else []
        for (number, shape), (text, blocks) in zip(rest, rendered, strict=True):
            results[number] = (text, blocks)
            if shape is not None and text:
                self._learn(forms, shape, rows[number], messages_of, render_rest, (text, blocks), how)
        return [result for result in results if result is not None]

    def _learn(
        self,
        forms: Forms[TextForm],
        shape: Shape,
        row: TrainingRow,
        messages_of: MessagesOf,
        render_rest: Callable[[Sequence[TrainingRow], MessagesOf, ProblemLog], list[Marked]],
        rendered: Marked,
        how: tuple[bool, bool],
    ) -> None:
        add_generation_prompt, needs_blocks = how

        def make() -> TextForm | None:
            if self._outliner is None:
                return None
            renderer, outliner = self._outliner
            messages = messages_of(row)
            conversation = renderer.conversation(messages, None, row.template_keywords)
            book = outliner.book(messages)
            outline = outliner.outline(
                book, conversation, messages, len(messages), prompt=add_generation_prompt, with_marks=needs_blocks
            )
            form = TextForm(Filling(book, [outline]), outline)
            if form.filled(messages) != rendered:
                return None
            # Where blocks begin is not followed but counted: it must hold for texts of other lengths too.
            others = [_longer(message, number) for number, message in enumerate(messages)]
            filled = form.filled(others)
            if filled is None:
                return None if needs_blocks else form
            return form if render_rest([row], lambda _: others, ProblemLog()) == [filled] else None

        forms.learn(shape, make)

    @cached_property
    def _outliner(self) -> tuple[Renderer, Outliner] | None:
        """What makes outlines; None where a tokenizer does not render as transformers does."""
        if not is_stock(self._tokenizer):
            return None
        template = self._tokenizer.get_chat_template(None, None)
        renderer = Renderer(template, self._tokenizer.special_tokens_map)
        return renderer, Outliner(renderer, template)


def _longer(message: Message, number: int) -> Message:
    """A message with longer texts: another number of characters for each field of each message."""
    return {
        name: f"{value[: len(value) // 2]}{'~' * (5 + 7 * number + place)}{value[len(value) // 2 :]}"
        if type(value) is str and name not in IDENTIFIERS and value.strip()
        else value
        for place, (name, value) in enumerate(message.items())
    }

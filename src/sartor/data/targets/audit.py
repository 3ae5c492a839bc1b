"""Checks of what is about to be trained, row by row, that no error stops: each is counted and said, with what to do.

What comes in: checked rows, their texts and their tokens.  What goes out: counts in a tally, and sentences made of it
alone, so that counts of several processes can be added up.  What it keeps true: nothing is changed; what would make
training wrong beyond doubt is an error elsewhere (see `docs/targets.md` for the list of both).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sartor.data.rows.formats import Message, TrainingRow
from sartor.data.templates.fields import any_of, fields_of, kinds_of
from sartor.data.templates.provenance.render import PerTemplate, Renderer, TraceError
from sartor.data.templates.provenance.shadow import Kind
from sartor.data.templates.provenance.spans import Span, spans_of
from sartor.data.templates.rendering import tools_of
from sartor.data.tokens.table import TokenRows
from sartor.records import DataSettings

FIELD_NAMES = {Kind.CONTENT: "the content", Kind.REASONING: "the reasoning", Kind.ARGUMENTS: "tool arguments"}
PLACES_NAMED = 3
"""Rows that are named of each finding; of the others the number is said."""

_SPECIAL, _DOUBLED, _ENDLESS = "special tokens in a row's text", "doubled bos", "rows without end"
_DROPPED = "left out: "
_FIRST_IN = ", first in: "


class Audit:
    """Checks rows of one data set."""

    def __init__(self, tokenizer: Any, end_tokens: Sequence[str] = ()) -> None:
        """`end_tokens`: texts at which generation stops, besides the tokenizer's end-of-text token."""
        self._tokenizer = tokenizer
        self._special = any_of(tokenizer.all_special_tokens)
        self._end_ids = end_ids(tokenizer, end_tokens)
        self._renderers = PerTemplate(tokenizer, Renderer)

    def check_contents(self, rows: Sequence[TrainingRow], tally: Counter[str]) -> None:
        """Count rows whose own text holds what the tokenizer takes for a special token."""
        # In one go first: nearly always there is none, and a search for each text takes longer than the search itself.
        end = self._tokenizer.eos_token
        if not self._special.search("\0".join([text for row in rows for text in _texts_of(row, end)])):
            return
        for row in rows:
            found = next(filter(None, map(self._special.search, _texts_of(row, end))), None)
            if found:
                count(tally, _SPECIAL, f"{row.where} ({found[0]})")

    def check_rendered(
        self, rows: Sequence[TrainingRow], texts: Sequence[str], tally: Counter[str], *, last_only: bool = False
    ) -> None:
        """Count fields of messages that the chat template left out of the rows' texts.

        A field whose text stands in the row's is taken to be there; only where it does not, its characters are traced.

        Args:
            last_only: whether only the last message of each row counts: conversations are unrolled.
        """
        for row, text in zip(rows, texts, strict=True):
            if not text:
                continue  # the template refused the row, which is a problem of its own
            messages = row.messages
            first = len(messages) - 1 if last_only else 0
            parts = [part for message in messages[first:] for part in _texts_to_write(message)]
            if [part for part in parts if part not in text and part.strip() not in text]:
                for kind in self._left_out(row, messages, first):
                    count_dropped(tally, kind)

    def _left_out(self, row: TrainingRow, messages: Sequence[Message], first: int) -> Iterator[Kind]:
        tools = tools_of(row)
        renderer = self._renderers.of(tools)
        try:
            conversation = renderer.conversation(messages, tools, row.template_keywords)
            spans = spans_of(renderer.traced(conversation, len(messages)).tags)
        except TraceError:
            return  # what cannot be traced cannot be said to be missing
        for number, message in enumerate(conversation.messages[first:], first):
            yield from kinds_of(message) - spans.get(number, Span()).kinds

    def check_tokens(self, encoded: TokenRows, places: Sequence[str], tally: Counter[str]) -> None:
        """Count rows that begin with two bos tokens, and rows of which no end token is trained."""
        for number in rows_with_two_bos(encoded, self._tokenizer.bos_token_id):
            count(tally, _DOUBLED, places[number])
        for number in rows_without_end(encoded, self._end_ids):
            count(tally, _ENDLESS, places[number])

    def notes(self, tally: Counter[str]) -> list[str]:
        """What is worth saying about the rows that are in the tally."""
        notes = dropped_notes(tally)
        if number := tally[_SPECIAL]:
            notes.append(
                f"{number:,} rows hold special tokens in their own text: {_named(tally, _SPECIAL)}. The tokenizer "
                "takes them for its own, so that one may end an answer early. Remove them, unless they are meant to be "
                "there."
            )
        if number := tally[_DOUBLED]:
            notes.append(
                f"{number:,} rows begin with {self._tokenizer.bos_token} twice: {_named(tally, _DOUBLED)}. Leave it "
                "out of the rows, or of the chat template: where the model is used there is one."
            )
        if number := tally[_ENDLESS]:
            notes.append(
                f"In {number:,} of {tally['rows']:,} rows no end-of-text token is trained ({_named(tally, _ENDLESS)}), "
                "so the model may not learn to stop. Set eos_token to the token that ends an answer in the chat "
                "template, and put it between the {% generation %} marks where there are marks."
            )
        return notes


def end_ids(tokenizer: Any, end_tokens: Sequence[str]) -> list[int]:
    """Tokens at which generation stops: the tokenizer's end-of-text token, and others by their texts."""
    return [tokenizer.convert_tokens_to_ids(token) for token in end_texts(tokenizer, end_tokens)]


def end_texts(tokenizer: Any, end_tokens: Sequence[str]) -> list[str]:
    """The texts of these tokens, each once."""
    return list(dict.fromkeys(token for token in (tokenizer.eos_token, *end_tokens) if token))


def rows_with_two_bos(encoded: TokenRows, bos: int | None) -> list[int]:
    """Numbers of the rows that begin with the bos token twice."""
    if bos is None:
        return []
    long = np.flatnonzero(encoded.lengths > 1)
    starts = encoded.offsets[:-1][long]
    found: list[int] = long[(encoded.input_ids[starts] == bos) & (encoded.input_ids[starts + 1] == bos)].tolist()
    return found


def rows_without_end(encoded: TokenRows, ends: Sequence[int]) -> list[int]:
    """Numbers of the rows of which tokens are trained, but none at which generation stops."""
    if not ends:
        return []
    num_ends = encoded.count(np.isin(encoded.labels, ends))
    found: list[int] = np.flatnonzero((num_ends == 0) & encoded.has_labels).tolist()
    return found


def count_dropped(tally: Counter[str], kind: Kind) -> None:
    """Count a field that the chat template leaves out."""
    tally[f"{_DROPPED}{kind.name}"] += 1


def dropped_notes(tally: Mapping[str, int]) -> list[str]:
    """What the chat template leaves out."""
    counts = {name: tally.get(f"{_DROPPED}{kind.name}", 0) for kind, name in FIELD_NAMES.items()}
    fields = ", ".join(f"{name} of {number:,} messages" for name, number in counts.items() if number)
    if not fields:
        return []
    hint = (
        " Where it drops that of earlier answers only, unroll=True trains each answer with its own."
        if counts[FIELD_NAMES[Kind.REASONING]]
        else ""
    )
    return [f"The chat template leaves out {fields}: that is not trained.{hint}"]


def without_effect(settings: DataSettings, *, proves_answers: bool, proves_starts: bool) -> list[str]:
    """Options of targets that are set where nothing is proven, so that they change nothing.

    Args:
        proves_answers: whether the targets of answers are proven.
        proves_starts: whether at least the beginnings of completions may be.
    """
    names = []
    if settings.append_eot and not proves_answers:
        names.append("append_eot")
    if settings.target_start != "proven" and not (proves_answers or proves_starts):
        names.append("target_start")
    if not names:
        return []
    marks = "the chat template has {% generation %} marks, which say what is trained"
    why = marks if settings.assistant_only_loss else "no answer is looked for in these rows"
    return [f"{' and '.join(names)} changes nothing: {why}."]


def collator_note(tokenizer: Any, end_tokens: Sequence[str]) -> str | None:
    """What to say where a collator of the user's own may take the end of an answer for padding.

    Padding made here is never a target, whatever its token; a collator that finds padding by its token (transformers'
    `DataCollatorForLanguageModeling`) would also remove a trained end.
    """
    pad = tokenizer.pad_token
    if pad is None or pad not in (tokenizer.eos_token, *end_tokens):
        return None
    return (
        f"The pad token {pad} also ends answers: if your data_collator sets labels of padding to -100 by its token, "
        "the model does not learn to stop. Set pad_token to another token, or keep the labels of the rows."
    )


def count(tally: Counter[str], kind: str, where: str) -> None:
    """Count a finding, and keep the places of the first ones."""
    tally[kind] += 1
    if tally[kind] <= PLACES_NAMED:
        tally[f"{kind}{_FIRST_IN}{where}"] += 1


def add_counts(total: Counter[str], more: Mapping[str, int]) -> None:
    """Add the counts of some more rows; of each finding no more places are kept than are named."""
    for name, number in more.items():
        kind, first_in, _ = name.partition(_FIRST_IN)
        if not first_in or len(_first_places(total, kind)) < PLACES_NAMED:
            total[name] += number


def _named(tally: Counter[str], kind: str) -> str:
    """The first places, for a sentence."""
    return "first " + "; ".join(_first_places(tally, kind))


def _first_places(tally: Iterable[str], kind: str) -> list[str]:
    head = kind + _FIRST_IN
    return [name.removeprefix(head) for name in tally if name.startswith(head)]


def _texts_of(row: TrainingRow, end: str | None) -> list[str]:
    """A row's own texts.  An end-of-text token that a text ends with is where it should be."""
    texts = []
    if isinstance(row.body, str):
        texts.append(row.body.removesuffix(end) if end else row.body)
    if isinstance(row.prompt, str):
        texts.append(row.prompt)
    for message in row.messages:
        texts += _texts_to_write(message)
    return texts


def _texts_to_write(message: Mapping[str, Any]) -> list[str]:
    """What a template should write of a message as it is: all but the names of functions."""
    return [text for kind, _, text in fields_of(message) if kind is not None]

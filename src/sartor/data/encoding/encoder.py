"""Turns checked rows into tokens and says which are trained: `TokenRows` from `TrainingRow`s, a batch at a time.

What it keeps true: ids and labels equal those of trl 1.16 for the same row, template and options.  Conversations are
rendered and then tokenized without further special tokens, since the template writes them; text is tokenized as the
tokenizer does by default.  All texts of a batch go through the tokenizer in one call, which its Rust code spreads
over the cores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from sartor.data.encoding.limits import check_rows
from sartor.data.encoding.tokenized import read_tokenized
from sartor.data.reading.problems import ProblemLog
from sartor.data.rows.formats import Reading, TrainingRow, convert
from sartor.data.targets.assistant import AssistantTargets
from sartor.data.targets.audit import Audit, without_effect
from sartor.data.targets.completion import CompletionStarts
from sartor.data.targets.prover import Start
from sartor.data.targets.unroll import unrolled
from sartor.data.targets.weights import Weigher, has_weights
from sartor.data.templates.rendering import has_generation_marks, render, render_marked
from sartor.data.tokens.layout import LaidText, TokenBytes, located, with_offsets
from sartor.data.tokens.table import TokenRows
from sartor.data.tokens.tokenizing import BatchTokenizer, Encodings, TextBatch, Tokenization
from sartor.errors import ConfigurationError
from sartor.records import DataSettings, RowFormat

Row = Mapping[str, Any]
Ids = list[list[int]]


class Encoder:
    """Encodes rows of one data set, and counts what is worth saying about them.

    A tally holds all counts, by name, so that those of several batches can be added up; `notes` is made of it alone.
    """

    def __init__(
        self, tokenizer: Any, reading: Reading, settings: DataSettings, end_tokens: Sequence[str] = ()
    ) -> None:
        if settings.assistant_only_loss and not tokenizer.is_fast:
            raise ConfigurationError(
                "assistant_only_loss=True needs a fast tokenizer (one with tokenizer.json); this one cannot say where "
                "in a text its tokens are."
            )
        self._tokenizer = tokenizer
        self._reading = reading
        self._settings = settings
        self._assistant_only = settings.assistant_only_loss
        self._completion_only = settings.completion_only_loss is not False or settings.unroll
        self._unrolls = settings.unroll
        self._appends_eos = not reading.is_conversational and reading.format is not RowFormat.TOKENIZED
        self.tokenize = BatchTokenizer(tokenizer)
        self._weigher = Weigher(tokenizer, assistant_only=self._assistant_only, completion_only=self._completion_only)
        self._audit = Audit(tokenizer, end_tokens)
        self._proven: AssistantTargets | None = None
        if self._assistant_only and reading.is_conversational and not has_generation_marks(tokenizer):
            self._proven = AssistantTargets(
                tokenizer,
                end_tokens,
                completion_only=self._completion_only,
                start=Start(settings.target_start),
                append_eot=settings.append_eot,
                last_only=settings.unroll,
            )
        self._starts: CompletionStarts | None = None
        if reading.is_conversational and tokenizer.is_fast and not self._assistant_only:
            self._starts = CompletionStarts(tokenizer, end_tokens, Start(settings.target_start))
        has_completions = reading.format is RowFormat.CONVERSATIONAL_PROMPT_COMPLETION
        self._unused = without_effect(
            settings,
            proves_answers=self._proven is not None,
            proves_starts=self._starts is not None and has_completions,
        )
        if self._appends_eos and tokenizer.eos_token is None:
            raise ConfigurationError(
                "The tokenizer has no end-of-text token to append to the rows. Set tokenizer.eos_token, or eos_token."
            )

    @cached_property
    def _token_bytes(self) -> TokenBytes | None:
        return TokenBytes.of(self._tokenizer.backend_tokenizer) if self._tokenizer.is_fast else None

    def encoding(
        self, rows: Sequence[Row], places: Sequence[str], problems: ProblemLog, tally: Counter[str]
    ) -> Tokenization[tuple[TokenRows, list[str]]]:
        """Tokens of these rows, all of them or, once there is a problem, none; and the place of each encoded row.

        Step by step: yields texts wherever it needs their tokens.  A conversation that is unrolled gives several rows
        of one place.
        """
        tally["rows"] += len(rows)
        if self._reading.format is RowFormat.TOKENIZED:
            encoded, rows, places = read_tokenized(rows, places, problems, completion_only=self._completion_only)
            if self._reading.has_row_weights or any("weights" in row for row in rows[:1]):
                encoded = encoded.weighted(np.concatenate([self._weigher.of_tokens(row, tally) for row in rows]))
            if not problems:
                check_rows(encoded, places, self._settings, problems)
            self._audit.check_tokens(encoded, places, tally)
            return encoded, places
        converted = [convert(row, where, self._reading, problems) for row, where in zip(rows, places, strict=True)]
        if problems:
            return TokenRows.from_lists([], []), []
        good = [row for row in converted if row is not None]
        if self._proven is None:  # which refuses such rows
            self._audit.check_contents(good, tally)
        if self._unrolls and self._reading.is_conversational:
            good = unrolled(good, tally)
        ids, is_target = yield from self._tokens_of(good, problems, tally)
        if problems:
            return TokenRows.from_lists([], []), []
        encoded = TokenRows.from_targets(ids, is_target)
        encoded = self._weigher.weigh(encoded, good, None if self._proven is None else is_target, problems, tally)
        self._check(encoded, good, problems, tally)
        check_rows(encoded, [row.where for row in good], self._settings, problems)
        return encoded, [row.where for row in good]

    def _tokens_of(
        self, rows: Sequence[TrainingRow], problems: ProblemLog, tally: Counter[str]
    ) -> Tokenization[tuple[Ids, Ids | None]]:
        """Ids, and for each a 1 where it is trained; None: all are."""
        if self._proven is not None:
            return (yield from self._proven.encoding(rows, problems, tally))
        match self._reading.format:
            case RowFormat.MESSAGES if not self._unrolls:
                if self._assistant_only:
                    return (yield from self._marked(rows, problems, tally))
                texts = render(self._tokenizer, rows, problems)
                self._audit.check_rendered(rows, texts, tally)
                return (yield from _ids_of(TextBatch(texts, is_rendered=True))), None
            case RowFormat.TEXT:
                return (yield from _ids_of(TextBatch([self._ended(str(row.body), tally) for row in rows]))), None
            case RowFormat.PROMPT_COMPLETION:
                prompt_ids = yield from _ids_of(TextBatch([str(row.prompt) for row in rows]))
                texts = [self._ended(str(row.body), tally, str(row.prompt)) for row in rows]
                ids = yield from _ids_of(TextBatch(texts))
                return ids, self._completions(prompt_ids, ids, None, tally)
            case _:
                return (yield from self._conversational_completions(rows, problems, tally))

    def _conversational_completions(
        self, rows: Sequence[TrainingRow], problems: ProblemLog, tally: Counter[str]
    ) -> Tokenization[tuple[Ids, Ids | None]]:
        asked = [row for row in rows if row.prompt]  # an unrolled first message has nothing before it
        prompts = render(self._tokenizer, asked, problems, prompt=True)
        if problems:
            return [], None
        some_ids = iter((yield from _ids_of(TextBatch(prompts, is_rendered=True))))
        prompt_ids = [next(some_ids) if row.prompt else [] for row in rows]
        if self._assistant_only:
            ids, is_marked = yield from self._marked(rows, problems, tally)
            return ids, self._completions(prompt_ids, ids, is_marked, tally)
        texts = render(self._tokenizer, rows, problems)
        self._audit.check_rendered(rows, texts, tally)
        ids = yield from _ids_of(TextBatch(texts, is_rendered=True))
        is_target = self._completions(prompt_ids, ids, None, tally)
        return self._with_proven_starts(rows, ids, is_target, prompt_ids, problems, tally)

    def _with_proven_starts(
        self,
        rows: Sequence[TrainingRow],
        ids: Ids,
        is_target: Ids | None,
        prompt_ids: Ids,
        problems: ProblemLog,
        tally: Counter[str],
    ) -> tuple[Ids, Ids | None]:
        """The same, where rows do not begin with their prompt's ids, from where their first answer begins."""
        if is_target is None or self._starts is None:
            return ids, is_target
        for number, row in enumerate(rows):
            prompt = prompt_ids[number]
            if ids[number][: len(prompt)] != prompt and self._starts.can_prove(row):
                ids[number], start = self._starts.encode(row, problems, tally)
                is_target[number] = [0] * start + [1] * (len(ids[number]) - start)
                tally["prompts that are no prefix"] -= 1
        return ids, is_target

    def _marked(
        self, rows: Sequence[TrainingRow], problems: ProblemLog, tally: Counter[str]
    ) -> Tokenization[tuple[Ids, Ids]]:
        """Ids of conversations, and which of them lie between the template's generation marks."""
        marked = render_marked(self._tokenizer, rows, problems)
        self._audit.check_rendered(rows, [text for text, _ in marked], tally, last_only=self._unrolls)
        texts = [text for text, _ in marked]
        encodings = yield from located(texts, self._token_bytes)
        unclear = [number for number, row in enumerate(encodings) if self._is_unclear(row, *marked[number])]
        encodings = yield from with_offsets(texts, encodings, unclear)
        ids = [encoding.ids for encoding in encodings]
        marks = [
            _marked_tokens(encoding, len(tokens), blocks)
            for encoding, tokens, (_, blocks) in zip(encodings, ids, marked, strict=True)
        ]
        return ids, marks

    def _is_unclear(self, encoding: Any, text: str, blocks: Sequence[tuple[int, int]]) -> bool:
        """Whether the tokenizer itself must be asked where a text's blocks are: offsets may leave out white space."""
        return isinstance(encoding, LaidText) and any(
            not 0 <= start < end <= len(text)
            or self._token_bytes is None
            or self._token_bytes.may_be_hidden(text, encoding, start)
            or self._token_bytes.may_be_hidden(text, encoding, end - 1)
            for start, end in blocks
        )

    def _completions(self, prompt_ids: Ids, ids: Ids, is_marked: Ids | None, tally: Counter[str]) -> Ids | None:
        """Which tokens are trained of prompts and completions: from where ids and the prompt's own ids part.

        That is not always the prompt's length: a template may write a prompt alone otherwise than before a
        completion, and tokens may merge across the boundary.  Worked example: prompt [5, 6, 7] and whole [5, 6, 8, 9]
        give [0, 0, 1, 1].
        """
        if not self._completion_only:
            return is_marked
        is_target: Ids = []
        for number, (prompt, whole) in enumerate(zip(prompt_ids, ids, strict=True)):
            start = common_prefix_length(prompt, whole)
            tally["prompts that are no prefix"] += start < len(prompt)
            rest = [1] * (len(whole) - start) if is_marked is None else is_marked[number][start:]
            is_target.append([0] * start + rest)
        return is_target

    def _ended(self, text: str, tally: Counter[str], prompt: str = "") -> str:
        """The text with the end-of-text token, unless it has it already."""
        if text.endswith(self._tokenizer.eos_token):
            return prompt + text
        tally["end-of-text tokens appended"] += 1
        return f"{prompt}{text}{self._tokenizer.eos_token}"

    def notes(self, tally: Counter[str]) -> tuple[str, ...]:
        """What is worth saying about the rows that are in the tally."""
        notes = [*self._weigher.notes(tally), *(() if self._proven is None else self._proven.notes(tally))]
        if count := tally["unrolled answers"]:
            rows = f"{tally['unrolled conversations']:,} conversations"
            notes.append(f"unroll: {rows} give {count:,} rows, one for each answer.")
        if count := tally["end-of-text tokens appended"]:
            notes.append(f"The end-of-text token is appended to {count:,} rows.")
        if count := tally["prompts that are no prefix"]:
            notes.append(
                f"In {count:,} rows the prompt alone is tokenized otherwise than before its completion; the completion "
                "is trained from where they part. End prompts at a token's boundary to avoid it."
            )
        notes += [] if self._starts is None else self._starts.notes(tally)
        notes += [*self._audit.notes(tally), *self._unused]
        return tuple(notes)

    def _check(
        self, encoded: TokenRows, rows: Sequence[TrainingRow], problems: ProblemLog, tally: Counter[str]
    ) -> None:
        """Note rows without tokens, and rows of which nothing is trained although something should be."""
        for number in np.flatnonzero(encoded.lengths == 0).tolist():
            problems.add("no tokens", rows[number].where, "the row is tokenized to nothing.", rows[number].body)
        is_left_out = np.array([row.weight == 0 for row in rows], np.bool_)
        for number in np.flatnonzero(~encoded.has_labels & (encoded.lengths > 0) & ~is_left_out).tolist():
            problems.add("nothing trained", rows[number].where, self._why_nothing(rows[number]), rows[number].body)
        self._audit.check_tokens(encoded, [row.where for row in rows], tally)

    def _why_nothing(self, row: TrainingRow) -> str:
        if has_weights(row):
            return (
                "every message of it that would be trained has weight 0 or train: false. Give the row weight 0 instead."
            )
        if self._proven is not None:
            return "it has no message of the assistant that is to be trained."
        if self._assistant_only:
            return "the chat template puts none of it between {% generation %} marks. Check the marks and the roles."
        return "the chat template renders the completion to nothing. Check the completion's roles."


def _ids_of(batch: TextBatch) -> Generator[TextBatch, Encodings, Ids]:
    """Ids of each text."""
    encodings = yield batch
    return [encoding.ids for encoding in encodings]


def _marked_tokens(encoding: Any, num_tokens: int, blocks: Sequence[tuple[int, int]]) -> list[int]:
    """A 1 for each token of a text that lies in one of the marked blocks of characters, as transformers finds them."""
    marks = [0] * num_tokens
    for start, end in blocks:
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        if first is None:
            break
        after = last + 1 if last else num_tokens
        marks[first:after] = [1] * (after - first)
    return marks


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading tokens two rows share."""
    if first == second[: len(first)]:
        return len(first)
    return next(number for number, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)

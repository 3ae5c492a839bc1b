"""A model that answers.

Comes in: messages (`{"role": ..., "content": ...}`).  Goes out: the answer's text, piece by piece, or many answers at
once. Generation is the model's own `generate`.  Whatever it does to a model that is still being trained (mode, random
state) is undone.

Shape suffixes: B rows of a padded batch, L its length.
"""

from __future__ import annotations

import copy
import queue
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from sartor import compat
from sartor.chat.decode import TextDecoder, decode, hidden_tokens
from sartor.chat.loading import load_model
from sartor.chat.options import Sampling, SamplingOptions, settle
from sartor.device import generators_apart
from sartor.errors import ModelError

__all__ = ["Ending", "Message", "Prompt", "Reply", "SamplingOptions", "Speaker", "load"]

Message = Mapping[str, Any]

BATCH_TOKENS = 32_768
"""Of prompts, padding and answers together, in one batch of `Speaker.answers`: bounds its key-value cache."""


class Ending(StrEnum):
    """Why an answer ended."""

    COMPLETE = "complete"
    LENGTH = "length"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as the model reads it."""

    input_ids: tuple[int, ...]
    messages: tuple[Message, ...]
    """Those that fit into the model's context."""
    num_dropped_messages: int
    """The oldest ones, which did not fit; a system message is never dropped."""
    max_new_tokens: int
    """As asked for, or what the context leaves."""


def load(
    path_or_id: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    base: str | Path | None = None,
) -> Speaker:
    """Load a model's or LoRA adapter's folder or Hub id.

    `device` None: the first GPU, else the CPU.  `dtype` None: the model's own, but float32 where the device has no
    instructions for it.  `base` replaces the base model that an adapter names.  Raises ModelError.
    """
    model, tokenizer, notes = load_model(
        path_or_id,
        device=device,
        dtype=dtype,
        revision=revision,
        token=token,
        trust_remote_code=trust_remote_code,
        base=base,
    )
    return Speaker(model, tokenizer, notes=notes)


class Speaker:
    """A model and its tokenizer, in conversation.

    Without a chat template the model has never seen a conversation: the last message alone (after the system message,
    where there is one) is given as plain text, and the model continues it.
    """

    def __init__(self, model: Any, tokenizer: Any, *, notes: Sequence[str] = ()) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.notes = tuple(notes)
        """Sentences worth saying aloud about how the model was loaded."""

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer knows how a conversation is written."""
        return bool(self.tokenizer.chat_template)

    @property
    def context_tokens(self) -> int | None:
        """Positions that the model was made for; None where it has no such limit."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: all of the generation_config's, and the tokenizer's."""
        own = self.model.generation_config.eos_token_id
        ids = [] if own is None else [own] if isinstance(own, int) else list(own)
        ids += [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        return tuple(dict.fromkeys(ids))

    def sampling(self, options: SamplingOptions) -> Sampling:
        """What `options` come to with this model's own generation_config."""
        return settle(options, self.model.generation_config.to_dict())

    def read(self, messages: Sequence[Message], options: SamplingOptions | None = None) -> Prompt:
        """Turn a conversation into the model's input, without its oldest turns where it is longer than the context.

        A turn is a message of the user with all that follows it up to the next one.  At least a quarter of the context,
        or max_new_tokens where that is less, is left for the answer, unless the last turn alone takes more.

        Raises ModelError where there is no message, the last turn alone does not fit, or the template refuses the
        messages.
        """
        if not messages:
            raise ModelError("there is no message to answer.")
        wanted = self.sampling(options or SamplingOptions()).max_new_tokens
        system, turns = _split_turns(messages)
        if not self.has_template:
            turns = [[messages[-1]]]
        num_fitting = len(turns)
        context = self.context_tokens
        room = wanted if context is None else min(wanted, max(1, context // 4))
        while True:
            kept = (*system, *(message for turn in turns[-num_fitting:] for message in turn))
            input_ids = self._encode(kept)
            if context is None or num_fitting == 1 or len(input_ids) + room <= context:
                break
            num_fitting -= 1
        if context is not None and len(input_ids) >= context:
            raise ModelError(
                f"the message takes {len(input_ids)} tokens, and the model reads {context} at most, "
                "its answer included: shorten it."
            )
        left = wanted if context is None else min(wanted, context - len(input_ids))
        return Prompt(input_ids, kept, sum(len(turn) for turn in turns[:-num_fitting]), left)

    def reply(self, prompt: Prompt, options: SamplingOptions | None = None) -> Reply:
        """Begin to answer; the pieces come by iterating."""
        return Reply(self, prompt, options or SamplingOptions())

    def stream(self, messages: Sequence[Message], options: SamplingOptions | None = None) -> Reply:
        """Answer piece by piece.  Closing the iterator, or leaving it by an exception, stops the model."""
        return self.reply(self.read(messages, options), options)

    def answer(self, messages: Sequence[Message], options: SamplingOptions | None = None) -> str:
        """The whole answer."""
        return "".join(self.stream(messages, options))

    def answers(self, conversations: Sequence[Sequence[Message]], options: SamplingOptions | None = None) -> list[str]:
        """The texts of `answer_ids`."""
        hidden = hidden_tokens(self.tokenizer).union(self.end_ids)
        return [decode(self.tokenizer, ids, hidden) for ids in self.answer_ids(conversations, options)]

    def answer_ids(
        self, conversations: Sequence[Sequence[Message]], options: SamplingOptions | None = None
    ) -> list[list[int]]:
        """Answer many conversations, in their order; greedy where `options` is None.

        Conversations of about the same length go through the model together, padded on the left.  Greedy answers are
        those that `answer` gives, up to rounding; sampled ones are drawn batch by batch.

        Returns:
            The tokens of each answer, up to and with its first end token where it has one.
        """
        options = options or SamplingOptions(greedy=True)
        prompts = [self.read(messages, options) for messages in conversations]
        answers: list[list[int]] = [[]] * len(prompts)
        for rows in self._batches(prompts):
            for row, ids in zip(rows, self._generate_batch([prompts[row] for row in rows], options), strict=True):
                answers[row] = ids
        return answers

    def generate(self, input_ids_BL: torch.Tensor, num_new: int, options: SamplingOptions, **watchers: Any) -> Any:
        """The model's own `generate`, with every mode and random state left as it was found.

        `input_ids_BL` is int64; positions before a row's first token hold `pad_id`, and `watchers` may bring an
        `attention_mask`, a `streamer` and `stopping_criteria`.
        """
        config = self._generation_config(options, num_new)
        watchers.setdefault("attention_mask", torch.ones_like(input_ids_BL))
        with _as_found(self.model, options.seed):
            return self.model.generate(input_ids_BL, generation_config=config, **watchers)

    @property
    def pad_id(self) -> int:
        """What fills rows: the tokenizer's padding, else an end token, else 0 (never attended to)."""
        own = self.tokenizer.pad_token_id
        return int(own) if own is not None else self.end_ids[0] if self.end_ids else 0

    def _encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        if not self.has_template:
            text = "\n\n".join(str(message["content"]) for message in messages)
            return tuple(self.tokenizer(text)["input_ids"])
        try:
            encoded = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except Exception as error:  # jinja2's own errors, and whatever a template's code does with odd messages
            roles = ", ".join(str(message.get("role")) for message in messages[:6])
            raise ModelError(f"the model's chat template refuses these messages (roles: {roles}): {error}") from error
        return tuple(encoded["input_ids"])

    def _generation_config(self, options: SamplingOptions, num_new: int) -> Any:
        config = copy.deepcopy(self.model.generation_config)
        for name, value in asdict(replace(self.sampling(options), max_new_tokens=num_new)).items():
            setattr(config, name, value)
        config.max_length = None
        config.eos_token_id = list(self.end_ids) or None
        config.pad_token_id = self.pad_id
        config.num_beams = 1
        config.num_return_sequences = 1
        config.return_dict_in_generate = False
        config.use_cache = True
        return config

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        """Row numbers, batch by batch: equal max_new_tokens (what a row may add depends on it), similar lengths."""
        order = sorted(range(len(prompts)), key=lambda row: (prompts[row].max_new_tokens, len(prompts[row].input_ids)))
        batch: list[int] = []
        for row in order:
            longest = len(prompts[row].input_ids)
            if batch and (
                prompts[batch[0]].max_new_tokens != prompts[row].max_new_tokens
                or (len(batch) + 1) * (longest + prompts[row].max_new_tokens) > BATCH_TOKENS
                or (self._mixes_padding and len(prompts[batch[0]].input_ids) != longest)
            ):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    @property
    def _mixes_padding(self) -> bool:
        """Whether the model carries a state along the row, which padding on the left would disturb."""
        return compat.carries_state(self.model)

    def _generate_batch(self, prompts: Sequence[Prompt], options: SamplingOptions) -> list[list[int]]:
        """New tokens of each row, without what follows the first end token."""
        longest = max(len(prompt.input_ids) for prompt in prompts)
        input_ids_BL = torch.full((len(prompts), longest), self.pad_id)
        attention_mask_BL = torch.zeros_like(input_ids_BL)
        for row, prompt in enumerate(prompts):
            input_ids_BL[row, longest - len(prompt.input_ids) :] = torch.tensor(prompt.input_ids)
            attention_mask_BL[row, longest - len(prompt.input_ids) :] = 1
        device = self.model.device
        output_BL = self.generate(
            input_ids_BL.to(device), prompts[0].max_new_tokens, options, attention_mask=attention_mask_BL.to(device)
        )
        ends = set(self.end_ids)
        rows = output_BL[:, longest:].tolist()
        return [ids[: next((at for at, i in enumerate(ids, 1) if i in ends), len(ids))] for ids in rows]


class Reply(Iterator[str]):
    """An answer while it is given.  The model works in a thread of its own; `close` stops it after its current token.

    After the last piece, `ending` says why it ended.
    """

    def __init__(self, speaker: Speaker, prompt: Prompt, options: SamplingOptions) -> None:
        self.prompt = prompt
        self.num_tokens = 0
        """Tokens given so far, the end token included."""
        self.ending: Ending | None = None
        self._ends = frozenset(speaker.end_ids)
        self._decoder = TextDecoder(speaker.tokenizer)
        self._queue: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._generate, args=(speaker, options), name="answer", daemon=True)
        self._thread.start()

    def __next__(self) -> str:
        """The next piece, never empty."""
        while self.ending is None:
            try:
                item = self._queue.get()
            except BaseException:  # Ctrl-C while waiting: the model must not go on unheard
                self.close()
                raise
            if isinstance(item, BaseException):
                self.close()
                raise item
            piece = self._take(item)
            if piece:
                return piece
        raise StopIteration

    def close(self) -> None:
        """Stop the model and wait for it to finish its current token.  May be called at any time, again too."""
        self._stop.set()
        self._thread.join()
        self.ending = self.ending or Ending.STOPPED

    def _take(self, token_id: int | None) -> str:
        if token_id is None:  # generate has returned: an end token, the limit, or a model whose limits are its own
            self.ending = Ending.LENGTH
            return self._decoder.end()
        self.num_tokens += 1
        if token_id in self._ends:
            self._thread.join()
            self.ending = Ending.COMPLETE
            return self._decoder.end()
        return self._decoder.push(token_id)

    def _generate(self, speaker: Speaker, options: SamplingOptions) -> None:
        """The thread: every token into the queue, then None; an error is handed over to be raised where the answer is
        read."""
        try:
            input_ids_BL = torch.tensor([self.prompt.input_ids], device=speaker.model.device)
            speaker.generate(
                input_ids_BL,
                self.prompt.max_new_tokens,
                options,
                streamer=_TokenQueue(self._queue),
                stopping_criteria=[self._is_stopped],
            )
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)

    def _is_stopped(self, input_ids_BL: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """A stopping criterion of `generate`."""
        return torch.full((input_ids_BL.shape[0],), self._stop.is_set(), device=input_ids_BL.device)


class _TokenQueue:
    """A streamer of `generate` that hands on each new token."""

    def __init__(self, tokens: queue.SimpleQueue[int | BaseException | None]) -> None:
        self._tokens = tokens
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate`: first with the prompt, then with each token."""
        if self._is_prompt:
            self._is_prompt = False
            return
        for token_id in value.flatten().tolist():
            self._tokens.put(token_id)

    def end(self) -> None:
        """Called by `generate` after the last token."""


def _split_turns(messages: Sequence[Message]) -> tuple[tuple[Message, ...], list[list[Message]]]:
    """System messages at the beginning, and the rest cut before each message of the user."""
    start = next((at for at, message in enumerate(messages) if message["role"] not in ("system", "developer")), None)
    if start is None:
        return (), [list(messages)]
    turns: list[list[Message]] = [[]]
    for message in messages[start:]:
        if message["role"] == "user" and turns[-1]:
            turns.append([])
        turns[-1].append(message)
    return tuple(messages[:start]), turns


@contextmanager
def _as_found(model: Any, seed: int | None) -> Iterator[None]:
    """Generate in eval mode with random numbers of its own; afterwards every module's mode and the generators are as
    before.

    A model in training mode would drop out, and draws would move the random state that a training run depends on.
    """
    training = [module for module in model.modules() if module.training]
    with generators_apart(model.device):
        torch.manual_seed(secrets.randbits(63) if seed is None else seed)
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from sartor.chat import sample
from sartor.chat.sample import Ending, SamplingOptions, Speaker
from sartor.errors import ModelError
from tests.chat.conftest import (
    ASSISTANT,
    CONTEXT,
    LEARNED,
    SYSTEM,
    USER,
    make_model,
    make_tokenizer,
    messages,
    user,
)

GREEDY = SamplingOptions(greedy=True)


@pytest.fixture
def speaker(learned_model: Any, tokenizer: Any) -> Speaker:
    return Speaker(learned_model, tokenizer)


def num_answering_threads() -> int:
    return sum(thread.name == "answer" for thread in threading.enumerate())


def test_what_was_learned_is_answered_to_the_letter(speaker: Speaker) -> None:
    for *question, (_, answer) in LEARNED[:-1]:
        assert speaker.answer(messages(*question), GREEDY) == answer


def test_pieces_come_character_by_character_and_the_reply_says_how_it_ended(speaker: Speaker) -> None:
    reply = speaker.stream(user("hi"), GREEDY)
    assert list(reply) == ["<think>", *"é?</think> na 😀!"]
    assert reply.ending == Ending.COMPLETE
    assert reply.num_tokens == len(speaker.tokenizer("<think>é?</think> na 😀!")["input_ids"]) + 1


def test_an_answer_as_long_as_allowed_is_told_from_a_complete_one(speaker: Speaker) -> None:
    reply = speaker.stream(user("name?"), SamplingOptions(greedy=True, max_new_tokens=3))
    assert "".join(reply) == "unk"
    assert reply.ending == Ending.LENGTH


def test_batched_answers_equal_single_ones_in_their_order(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [messages(*turns[:-1]) for turns in LEARNED]
    questions += [user(text) for text in ("a", "name? name?", "I am Bob", "hi hi hi", "sing sing")]
    options = SamplingOptions(greedy=True, max_new_tokens=40)
    single = [speaker.answer(question, options) for question in questions]
    assert speaker.answers(questions, options) == single
    monkeypatch.setattr(sample, "BATCH_TOKENS", 150)
    assert speaker.answers(questions, options) == single


def test_token_ids_of_answers_end_with_the_first_end_token(speaker: Speaker) -> None:
    ended, cut = speaker.answer_ids([user("hi"), user("sing")], SamplingOptions(greedy=True, max_new_tokens=40))
    (end,) = speaker.end_ids
    assert ended == [*speaker.tokenizer("<think>é?</think> na 😀!")["input_ids"], end]
    assert len(ended) < len(cut) == 40
    assert end not in cut


def test_batches_hold_each_row_once_and_no_more_tokens_than_allowed(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "BATCH_TOKENS", 500)
    prompts = [speaker.read(user("x" * num), SamplingOptions(max_new_tokens=20)) for num in (9, 1, 250, 30, 2, 260, 4)]
    batches = list(speaker._batches(prompts))
    assert sorted(row for batch in batches for row in batch) == list(range(7))
    assert len(batches) > 1
    for batch in batches:
        longest = max(len(prompts[row].input_ids) for row in batch)
        assert len(batch) == 1 or len(batch) * (longest + 20) <= 500


def test_a_model_with_a_state_is_never_padded(tokenizer: Any) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(3)
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=32, state_size=4, num_hidden_layers=2)
    stateful = Speaker(MambaForCausalLM(config).eval(), tokenizer)
    questions = [user(text) for text in ("a", "bcd", "efg", "hello there")]
    options = SamplingOptions(greedy=True, max_new_tokens=8)
    batches = list(stateful._batches([stateful.read(question, options) for question in questions]))
    assert batches == [[0], [1, 2], [3]]
    assert stateful.answers(questions, options) == [stateful.answer(question, options) for question in questions]


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(speaker: Speaker) -> None:
    def draw(seed: int | None) -> str:
        return speaker.answer(user("what?"), SamplingOptions(temperature=3.0, max_new_tokens=30, seed=seed))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_sampling_options_reach_the_model(speaker: Speaker) -> None:
    hot = SamplingOptions(temperature=50.0, max_new_tokens=30, seed=1)
    greedy = speaker.answer(user("hi"), SamplingOptions(greedy=True, max_new_tokens=30))
    assert speaker.answer(user("hi"), hot) != greedy
    narrowed = SamplingOptions(temperature=50.0, top_k=1, max_new_tokens=30, seed=1)
    assert speaker.answer(user("hi"), narrowed) == greedy
    nucleus = SamplingOptions(temperature=50.0, top_p=1e-6, max_new_tokens=30, seed=1)
    assert speaker.answer(user("hi"), nucleus) == greedy
    unrepeated = SamplingOptions(greedy=True, repetition_penalty=100.0, max_new_tokens=12)
    assert speaker.answer(user("sing"), SamplingOptions(greedy=True, max_new_tokens=12)) == "la " * 4
    assert "la la" not in speaker.answer(user("sing"), unrepeated)


def test_answering_leaves_modes_and_random_state_as_found(tokenizer: Any) -> None:
    model = make_model(len(tokenizer))
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    Speaker(model, tokenizer).answer(user("a"), SamplingOptions(temperature=1.0, max_new_tokens=4))
    Speaker(model, tokenizer).answers([user("a")], SamplingOptions(temperature=1.0, max_new_tokens=4))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_in_training_mode_answers_without_dropout(tokenizer: Any) -> None:
    model = make_model(len(tokenizer), attention_dropout=0.5)
    options = SamplingOptions(greedy=True, max_new_tokens=30)
    calm = Speaker(model, tokenizer).answer(user("abc"), options)
    assert Speaker(model.train(), tokenizer).answer(user("abc"), options) == calm


def test_closing_a_reply_stops_the_model(speaker: Speaker) -> None:
    reply = speaker.stream(user("sing"), GREEDY)
    assert next(reply) == "l"
    reply.close()
    assert reply.ending == Ending.STOPPED
    assert num_answering_threads() == 0
    assert list(reply) == []
    assert reply._queue.qsize() < 250, "the model sang on to the end of its context"
    reply.close()


def test_an_error_of_the_model_reaches_whoever_reads_the_answer(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise FloatingPointError("broken")

    monkeypatch.setattr(speaker.model.model, "forward", fail)
    with pytest.raises(FloatingPointError, match="broken"):
        speaker.answer(user("hi"), GREEDY)
    assert num_answering_threads() == 0


def test_every_end_token_of_model_and_tokenizer_ends_an_answer(learned_model: Any, tokenizer: Any) -> None:
    import copy

    model = copy.copy(learned_model)
    model.generation_config = copy.deepcopy(learned_model.generation_config)
    letter = tokenizer("w")["input_ids"][0]
    model.generation_config.eos_token_id = [letter]
    speaker = Speaker(model, tokenizer)
    assert speaker.end_ids == (letter, tokenizer.eos_token_id)
    assert speaker.answer(user("name?"), GREEDY) == "unkno"
    assert speaker.answer(user("hi"), GREEDY) == "<think>é?</think> na 😀!"
    assert speaker.answers([user("name?"), user("hi")], GREEDY) == ["unkno", "<think>é?</think> na 😀!"]
    prompt = speaker.read(user("name?"), GREEDY)
    output_BL = speaker.generate(torch.tensor([prompt.input_ids]), 40, GREEDY)
    assert output_BL[0, len(prompt.input_ids) :].tolist() == tokenizer("unknow")["input_ids"], "the model went on"
    model.generation_config.eos_token_id = letter
    assert speaker.end_ids == (letter, tokenizer.eos_token_id)


class TestLongConversations:
    def test_the_oldest_turns_go_first_and_the_system_text_stays(self, speaker: Speaker) -> None:
        turns = [(USER, f"{n}" * 80) if n % 2 == 0 else (ASSISTANT, f"{n}" * 40) for n in range(7)]
        prompt = speaker.read(messages((SYSTEM, "Bob"), *turns), SamplingOptions(max_new_tokens=10))
        assert prompt.num_dropped_messages == 4
        assert list(prompt.messages) == messages((SYSTEM, "Bob"), *turns[4:])
        assert len(prompt.input_ids) + 10 <= CONTEXT
        assert prompt.max_new_tokens == 10

    def test_what_fits_to_the_last_token_is_kept(self, speaker: Speaker) -> None:
        turns = messages((USER, "a"), (ASSISTANT, "b"), (USER, "c"))
        free = CONTEXT - 10 - len(speaker.read(turns).input_ids)
        options = SamplingOptions(max_new_tokens=10)
        turns[0]["content"] = "a" * (free + 1)
        assert speaker.read(turns, options).num_dropped_messages == 0
        turns[0]["content"] = "a" * (free + 2)
        assert speaker.read(turns, options).num_dropped_messages == 2

    def test_the_answer_never_runs_past_the_context(self, speaker: Speaker) -> None:
        reply = speaker.stream(user("sing"), GREEDY)
        "".join(reply)
        assert reply.ending == Ending.LENGTH
        assert len(reply.prompt.input_ids) + reply.num_tokens == CONTEXT

    def test_a_message_that_cannot_fit_is_refused_with_its_length(self, speaker: Speaker) -> None:
        with pytest.raises(ModelError, match=f"reads? {CONTEXT} at most"):
            speaker.read(user("x" * CONTEXT))


class TestWithoutTemplate:
    def test_the_last_message_alone_is_given_as_plain_text(self) -> None:
        tokenizer = make_tokenizer(template=None)
        speaker = Speaker(make_model(len(tokenizer)), tokenizer)
        assert not speaker.has_template
        conversation = messages((SYSTEM, "S"), (USER, "a"), (ASSISTANT, "b"), (USER, "cd"))
        prompt = speaker.read(conversation)
        assert list(prompt.input_ids) == tokenizer("S\n\ncd")["input_ids"]
        assert prompt.num_dropped_messages == 0
        assert list(speaker.read(user("cd")).input_ids) == tokenizer("cd")["input_ids"]


def test_a_template_that_refuses_messages_is_named_with_its_reason(learned_model: Any) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}x"
    speaker = Speaker(learned_model, make_tokenizer(refusing))
    with pytest.raises(ModelError, match=r"roles: system, user\): no system here"):
        speaker.read(messages((SYSTEM, "a"), (USER, "b")))


def test_no_message_is_an_error_and_no_conversations_are_none(speaker: Speaker) -> None:
    with pytest.raises(ModelError, match="no message"):
        speaker.read([])
    assert speaker.answers([]) == []

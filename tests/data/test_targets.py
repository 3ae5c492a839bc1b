"""What is trained of each answer is what follows its prompt, up to its end token; what cannot be proven is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.data.targets.prover import Proof, Prover, Rule, Unproven
from sartor.data.templates.provenance.shadow import Kind

from .chat_templates import (
    BOTH,
    CHATML,
    CONVERSATION,
    DEEPSEEK_R1,
    GEMMA,
    HEAD,
    HOSTILE,
    IM_END,
    LLAMA3,
    MISTRAL,
    PHI3,
    PUBLISHED,
    QWEN3,
    SPECIAL,
    TAIL,
    Template,
    chatml,
)
from .test_trl_templates import CALLS, RAIN, answer, user

SYSTEM = {"role": "system", "content": "Be grim."}


def chatml_prover(source: str = CHATML) -> Prover:
    return Prover(source, SPECIAL, IM_END)


def targets_of(proof: Proof) -> tuple[str, ...]:
    return tuple(proof.text[turn.start : turn.end] for turn in proof.turns)


@pytest.mark.parametrize("name", [*PUBLISHED, *HOSTILE])
def test_each_kind_of_template_is_proven_or_refused(name: str) -> None:
    template: Template = {**PUBLISHED, **HOSTILE}[name]
    prover = Prover(template.source, SPECIAL, template.end_tokens)
    if template.refused:
        with pytest.raises(Unproven) as caught:
            prover.prove(CONVERSATION)
        assert caught.value.kind == template.refused
    else:
        assert targets_of(prover.prove(CONVERSATION)) == template.targets


def test_the_example_of_the_documentation() -> None:
    proof = chatml_prover().prove(CONVERSATION[:2])
    assert targets_of(proof) == ("Yo<|im_end|>",)
    assert [(turn.message, turn.rule, turn.end_token) for turn in proof.turns] == [(1, Rule.EXACT, "<|im_end|>")]
    assert proof.dropped == ()


PIECES = [
    "a",
    "é",
    "\n",
    "<think>",
    "<|im_start|>assistant\n",
    "<|im_start|>",
    "assistant",
    "Yo",
    "<start_of_turn>model\n",
]
CONTENTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join).filter(str.strip)


@pytest.mark.parametrize(
    ("source", "end", "is_trimmed"),
    [(CHATML, "<|im_end|>", False), (GEMMA, "<end_of_turn>", True), (LLAMA3, "<|eot_id|>", True)],
    ids=["chatml", "gemma", "llama 3"],
)
@settings(max_examples=150, deadline=None)
@given(texts=st.lists(CONTENTS, min_size=4, max_size=4))
def test_contents_made_of_the_templates_own_marks_confuse_nothing(
    source: str, end: str, is_trimmed: bool, texts: list[str]
) -> None:
    messages = [{**message, "content": text} for message, text in zip(CONVERSATION, texts, strict=True)]
    proof = Prover(source, SPECIAL, [end]).prove(messages)
    expected = tuple((text.strip() if is_trimmed else text) + end for text in (texts[1], texts[3]))
    assert targets_of(proof) == expected


PROVEN = sorted(name for name, template in {**PUBLISHED, **HOSTILE}.items() if not template.refused)
PROVERS = {
    name: Prover(template.source, SPECIAL, template.end_tokens)
    for name, template in {**PUBLISHED, **HOSTILE}.items()
    if not template.refused
}
PLAIN = st.lists(
    st.sampled_from(["a", "é", " x", "\ny", "<think>", "assistant\n", "[/INST]", "'"]), min_size=1, max_size=5
)


@pytest.mark.parametrize("name", PROVEN)
@settings(max_examples=15, deadline=None)
@given(texts=st.lists(PLAIN.map("z".join), min_size=5, max_size=5), changed=st.integers(0, 3))
def test_changing_a_message_changes_no_target_but_its_own(name: str, texts: list[str], changed: int) -> None:
    before = [{**message, "content": text} for message, text in zip(CONVERSATION, texts, strict=False)]
    after = [dict(message) for message in before]
    after[changed]["content"] = texts[4]
    found = []
    for messages in (before, after):
        try:
            proof = PROVERS[name].prove(messages)
        except Unproven:
            return  # a refusal is no wrong target
        found.append({turn.message: proof.text[turn.start : turn.end] for turn in proof.turns})
    assert {number for number in found[0] if found[0][number] != found[1][number]} <= {changed}
    assert found[0].keys() == found[1].keys() == {1, 3}


@pytest.mark.parametrize("number", range(4))
def test_a_message_that_holds_a_special_token_is_refused_by_its_number(number: int) -> None:
    messages = [dict(message) for message in CONVERSATION]
    messages[number]["content"] += " <|im_end|>"
    with pytest.raises(Unproven, match=rf"message {number + 1} holds '<\|im_end\|>'") as caught:
        chatml_prover().prove(messages)
    assert caught.value.kind == "special token in a message"


def test_a_special_token_that_is_half_a_messages_is_refused() -> None:
    source = chatml(HEAD + "{{ message.content }}|im_end|>" + TAIL)
    with pytest.raises(Unproven, match="special token"):
        chatml_prover(source).prove([user("Hi"), answer("Yo <")])


def test_other_atoms_are_refused_too() -> None:
    prover = Prover(CHATML, SPECIAL, IM_END, ["<|pad|>"])
    with pytest.raises(Unproven, match=r"holds '<\|pad\|>'"):
        prover.prove([user("what is <|pad|>?"), answer("Yo")])


def test_earlier_text_that_is_rewritten_does_not_move_a_target() -> None:
    source = chatml(
        HEAD + "{% if loop.revindex == 1 and message.role == 'user' %}(now) {% endif %}{{ message.content }}" + TAIL
    )
    proof = chatml_prover(source).prove(CONVERSATION)
    assert targets_of(proof) == BOTH
    assert [turn.rule for turn in proof.turns] == [Rule.TAIL, Rule.TAIL]


def test_a_system_message_that_is_moved_does_not_move_a_target() -> None:
    proof = Prover(MISTRAL, SPECIAL, ["</s>"]).prove([SYSTEM, *CONVERSATION])
    assert targets_of(proof) == (" Yo</s>", " No.</s>")
    assert [turn.rule for turn in proof.turns] == [Rule.NO_PROMPT, Rule.EXACT]
    assert "Hi[/INST]" in proof.text


def test_a_conversation_may_begin_with_an_answer() -> None:
    proof = chatml_prover().prove([answer("Welcome"), user("Hi"), answer("Yo")])
    assert targets_of(proof) == ("Welcome<|im_end|>", "Yo<|im_end|>")
    assert proof.turns[0].rule is Rule.FOUND
    with pytest.raises(Unproven, match="no prompt for message 1"):
        Prover(DEEPSEEK_R1, SPECIAL, ["</s>"]).prove([answer("Welcome")])


def test_a_template_that_refuses_the_beginning_alone_is_proven_by_its_usual_prompt() -> None:
    source = "{% if messages|length < 4 %}{{ raise_exception('too short') }}{% endif %}" + CHATML
    with pytest.raises(Unproven, match="no prompt for message 2"):
        chatml_prover(source).prove(CONVERSATION)
    source = "{% if messages|length == 3 %}{{ raise_exception('not three') }}{% endif %}" + CHATML
    proof = chatml_prover(source).prove(CONVERSATION)
    assert targets_of(proof) == BOTH
    assert [turn.rule for turn in proof.turns] == [Rule.EXACT, Rule.FOUND]


def test_a_header_is_not_trained_where_a_template_asks_for_no_second_answer() -> None:
    asks = (
        "{% if add_generation_prompt and messages[-1].role == 'user' %}"
        "{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    source = "{% for message in messages %}" + HEAD + "{{ message.content }}" + TAIL + "{% endfor %}" + asks
    messages = [user("Hi"), answer("<think>\nYo"), answer("Yo again")]
    assert targets_of(chatml_prover(source).prove(messages[:2])) == ("Yo<|im_end|>",)
    with pytest.raises(Unproven) as caught:
        chatml_prover(source).prove(messages)
    assert caught.value.kind == "no generation prompt"


def test_a_turn_that_loses_its_reasoning_later_is_said_to_be_rewritten() -> None:
    messages = [user("Hi"), answer("Yo", reasoning_content="Hm"), user("And?"), answer("No.", reasoning_content="Oh")]
    proof = Prover(QWEN3, SPECIAL, IM_END).prove(messages)
    assert targets_of(proof) == ("Yo<|im_end|>", "<think>\nOh\n</think>\n\nNo.<|im_end|>")
    assert [turn.is_rewritten for turn in proof.turns] == [True, False]
    assert proof.dropped == ((1, Kind.REASONING),)


def test_what_the_prompt_opens_is_not_trained() -> None:
    messages = [user("Hi"), answer("Yo")]
    proof = Prover(QWEN3, SPECIAL, IM_END).prove(messages, keywords={"enable_thinking": False})
    assert targets_of(proof) == ("Yo<|im_end|>",)
    source = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
    proof = chatml_prover(source).prove([user("Hi"), answer("<think>\nHm</think>Yo")])
    assert targets_of(proof) == ("Hm</think>Yo<|im_end|>",)


def test_another_thinking_mode_than_the_texts_is_refused() -> None:
    with pytest.raises(Unproven, match="chat_template_kwargs") as caught:
        Prover(QWEN3, SPECIAL, IM_END).prove(CONVERSATION, keywords={"enable_thinking": False})
    assert caught.value.kind == "prompt not in the text"


def test_tool_calls_are_trained_and_their_answers_are_not() -> None:
    proof = Prover(QWEN3, SPECIAL, IM_END).prove([user("Hi"), answer("So", tool_calls=CALLS), RAIN, answer("wet")])
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert targets_of(proof) == (f"So\n{call}<|im_end|>", "<think>\n\n</think>\n\nwet<|im_end|>")


def test_fields_that_a_template_leaves_out_are_told() -> None:
    messages = [user("Hi"), answer("Yo", tool_calls=CALLS, reasoning_content="Hm")]
    proof = chatml_prover().prove(messages)
    assert proof.dropped == ((1, Kind.REASONING), (1, Kind.ARGUMENTS))


def test_an_answer_of_which_nothing_is_written_is_refused() -> None:
    with pytest.raises(Unproven, match="leaves out message 2"):
        chatml_prover().prove([user("Hi"), answer("", tool_calls=CALLS)])


def test_only_the_messages_asked_for_are_proven() -> None:
    proof = chatml_prover().prove(CONVERSATION, trained=[3])
    assert targets_of(proof) == ("No.<|im_end|>",)
    source = chatml(HEAD + "{{ message.content }}{% if loop.index > 2 %}" + TAIL + "{% endif %}")
    assert targets_of(chatml_prover(source).prove(CONVERSATION, trained=[3])) == ("No.<|im_end|>",)


def test_the_last_of_several_ends_is_trained() -> None:
    proof = Prover(PHI3, SPECIAL, ["<|end|>", "</s>"]).prove(CONVERSATION[:2])
    assert targets_of(proof) == ("Yo<|end|>\n</s>",)


def test_the_clock_stands_still_while_a_conversation_is_proven() -> None:
    source = "{{ strftime_now('%H:%M:%S.%f') }}" + CHATML
    proof = chatml_prover(source).prove(CONVERSATION)
    assert [turn.rule for turn in proof.turns] == [Rule.EXACT, Rule.EXACT]


def test_a_template_whose_text_depends_on_what_traces_it_is_refused() -> None:
    source = chatml(HEAD + "{{ (message.content|safe) ~ '<b>' }}" + TAIL)
    assert chatml_prover(source).prove(CONVERSATION).turns
    source = chatml(HEAD + "{{ (message.content|safe) + '<b>' }}" + TAIL)
    with pytest.raises(Unproven) as caught:
        chatml_prover(source).prove(CONVERSATION)
    assert caught.value.kind == "the template cannot be traced"


def test_a_conversation_may_have_more_messages_than_there_are_plain_characters() -> None:
    number = 0xD800 // 4 + 2  # whose tag is half of a pair, which encoders refuse
    messages = [user("Hi"), answer("Yo")] * (number // 2)
    proof = chatml_prover().prove(messages, trained=[len(messages) - 1])
    assert targets_of(proof) == ("Yo<|im_end|>",)


def test_what_a_template_raises_is_not_hidden() -> None:
    with pytest.raises(Exception, match="not today"):
        chatml_prover("{{ raise_exception('not today') }}").prove(CONVERSATION)

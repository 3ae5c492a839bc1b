"""The bundled conversations for real weights, and `sartor demo --real` from end to end."""

import math
import re
from itertools import combinations
from pathlib import Path

import pytest

from sartor.demo import real
from sartor.demo.folder import choose_folder
from sartor.demo.real_weights import RealWeights, obtain
from sartor.errors import ModelError, RunFolderError

TRAIN = real.bundled("train")
HELD_OUT = real.bundled("held_out")
ALL = TRAIN + HELD_OUT

_COMMON_WORDS = frozenset(
    re.findall(
        r"\w+",
        "what is the a an of to in on at how does do why it its i my if with for and are was be not no can has have "
        "from than there so s when",
    )
)


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9.]+", text.lower())) - _COMMON_WORDS


def _overlap(one: str, other: str) -> float:
    """Shared words among all words of the two, common ones left out."""
    return len(_words(one) & _words(other)) / len(_words(one) | _words(other))


def _num_sentences(text: str) -> int:
    return len(re.findall(r"[.!?](?=\s|$)", re.sub(r"\d\.\d+\.\.\.", "x", text)))


# --- the conversations -----------------------------------------------------------------------------------------------


def test_there_are_about_a_hundred_conversations_most_of_them_to_train_on():
    assert len(TRAIN) >= 84
    assert len(HELD_OUT) == 16


@pytest.mark.parametrize("conversation", ALL, ids=lambda conversation: conversation.question[:40])
def test_every_conversation_is_well_formed(conversation):
    for text in (conversation.question, conversation.reasoning, conversation.answer):
        assert text == " ".join(text.split())
        assert text.isascii()
        assert text.isprintable()
        assert text[-1] in ".?!"
        assert "think>" not in text
        assert "<|" not in text
    assert 1 <= _num_sentences(conversation.reasoning) <= 3
    assert 2 <= _num_sentences(conversation.answer) <= 4


def test_every_conversation_fits_into_the_default_length_whatever_the_tokenizer():
    # a byte-level tokenizer makes at most one token of each byte; 64 are left for the template's marks
    for conversation in ALL:
        row = conversation.as_row()
        text = row["prompt"][0]["content"] + row["completion"][0]["content"]
        assert len(text.encode()) + 64 <= 1024


def test_no_two_conversations_share_a_text():
    for column in ("question", "reasoning", "answer"):
        texts = [getattr(conversation, column).lower() for conversation in ALL]
        assert len(set(texts)) == len(texts)


def test_no_two_questions_are_near_duplicates():
    near = [
        (one.question, other.question)
        for one, other in combinations(ALL, 2)
        if _overlap(one.question, other.question) >= 0.4
    ]
    assert near == []


def test_no_two_answers_are_near_duplicates():
    assert [pair for pair in combinations([c.answer for c in ALL], 2) if _overlap(*pair) >= 0.3] == []


def test_the_tutorials_questions_are_in_no_conversation():
    for conversation in ALL:
        for question in real.QUESTIONS:
            assert _overlap(conversation.question, question) < 0.25, conversation.question
        text = f"{conversation.question} {conversation.reasoning} {conversation.answer}".lower()
        assert not re.search(r"edmonton|alberta|astronaut|time dilation|thrown|throw ", text), conversation.question
    assert not any("January" in conversation.question for conversation in ALL)


def test_the_overlap_measure_finds_a_paraphrase():
    assert _overlap("In January, what is the average temperature in Edmonton?", real.QUESTIONS[1]) == 1.0
    assert _overlap("A ball is thrown upward at 12 m/s. How high does it go?", real.QUESTIONS[2]) >= 0.25


def test_a_row_holds_question_and_thought_answer_as_messages():
    row = real.Conversation("Why?", "Sigh.", "Because. Go.").as_row()
    assert row == {
        "prompt": [{"role": "user", "content": "Why?"}],
        "completion": [{"role": "assistant", "content": "<think>Sigh.</think> Because. Go."}],
    }


# Numbers that an answer gives, recomputed.  Each is rounded as the answer rounds it.
NUMBERS = {
    "Why do things float": [("89 percent", (6371 / 6771) ** 2 * 100, "{:.0f} percent")],
    "A stone is dropped": [("3.03", math.sqrt(2 * 45 / 9.8), "{:.2f}")],
    "A car speeds up": [("3 metres", 30 / 10, "{:.0f} metres"), ("150 metres", 0.5 * 3 * 10**2, "{:.0f} metres")],
    "difference between mass": [("686", 70 * 9.8, "{:.0f}"), ("113", 70 * 1.62, "{:.0f}")],
    "60 watt bulb": [("0.26", 60 / 230, "{:.2f}"), ("882", 230**2 / 60, "{:.0f}")],
    "Three resistors": [("2 ohms", 6 / 3, "{:.0f} ohms"), ("18 ohms", 6 * 3, "{:.0f} ohms")],
    "wavelength of a radio": [("3 metres", 299_792_458 / 100e6, "{:.0f} metres")],
    "heat one litre": [("335 kilojoules", 4190 * 80 / 1000, "{:.0f} kilojoules")],
    "180 grams of water": [
        ("6.02", 180 / 18 * 6.022e23 / 1e24, "{:.2f}"),
        ("190 quadrillion", 6.022e24 / (365.25 * 86400) / 1e15 // 10 * 10, "{:.0f} quadrillion"),
    ],
    "mass of one mole": [("44 grams", 12 + 2 * 16, "{:.0f} grams")],
    "burning methane": [("64 grams", 2 * 32, "{:.0f} grams"), ("36 of water", 2 * 18, "{:.0f} of water")],
    "bats find": [("20 milliseconds", 6.8 / 343 * 1000, "{:.0f} milliseconds")],
    "magnitude 7": [("32 times", 10**1.5, "{:.0f} times")],
    "whole numbers from 1": [("5,050", sum(range(101)), "{:,}")],
    "share a birthday": [
        ("253 pairs", math.comb(23, 2), "{} pairs"),
        ("51 percent", 100 * (1 - math.prod((365 - i) / 365 for i in range(23))), "{:.0f} percent"),
    ],
    "inside a hexagon": [("720 degrees", (6 - 2) * 180, "{} degrees"), ("120 degrees", 720 / 6, "{:.0f} degrees")],
    "prime factors of 91": [("7 and 13", 91 / 7, "7 and {:.0f}")],
    "radius of 3 metres": [("28.3", math.pi * 9, "{:.1f}")],
    "A right triangle": [("13 centimetres", math.hypot(5, 12), "{:.0f} centimetres")],
    "100 euros": [("162.89", 100 * 1.05**10, "{:.2f}"), ("12.89", 100 * 1.05**10 - 150, "{:.2f}")],
    "word LEVEL": [("30", math.factorial(5) // 4, "{}")],
    "100 degrees Fahrenheit": [("37.8", (100 - 32) * 5 / 9, "{:.1f}")],
    "A train travels": [("60 kilometres", 150 / 2.5, "{:.0f} kilometres"), ("16.7", 60 / 3.6, "{:.1f}")],
    "use binary": [("1,024", 2**10, "{:,}")],
    "How does GPS": [("300 metres", 1e-6 * 299_792_458, "{:.0f} metres")],
    "My room is 4": [("60 kilograms", 4 * 5 * 2.5 * 1.2, "{:.0f} kilograms")],
    "the horizon": [("4.7 kilometres", math.sqrt(2 * 6371 * 0.0017), "{:.1f} kilometres")],
    "two sixes": [("2.8 percent", 100 / 36, "{:.1f} percent")],
    "How far away is the Moon": [("1.3 seconds", 384_400 / 299_792, "{:.1f} seconds")],
    "kinetic energy": [("200,000", 0.5 * 1000 * 20**2, "{:,.0f}"), ("800", 0.5 * 1000 * 40**2 / 1000, "{:.0f}")],
    "A jacket costs": [("60 euros", 80 * 0.75, "{:.0f} euros"), ("gives 75", 60 * 1.25, "gives {:.0f}")],
    "17 times 23": [("391", 17 * 23, "{}")],
}


@pytest.mark.parametrize("start", NUMBERS)
def test_numbers_in_answers_are_right(start):
    [conversation] = [conversation for conversation in ALL if start in conversation.question]
    for written, value, form in NUMBERS[start]:
        assert form.format(value) == written
        assert written in f"{conversation.reasoning} {conversation.answer}"


# --- the run folder --------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunFolderError, match=r"holds something already.*--output_dir"):
        real.run(tmp_path, 1, weights=RealWeights(tmp_path, "none", "none"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_default_folder_gets_a_number_where_it_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose_folder(None, real.DEFAULT_FOLDER) == (Path("runs/demo-real"), "")
    Path("runs/demo-real").mkdir(parents=True)
    Path("runs/demo-real-2").mkdir()
    folder, note = choose_folder(None, real.DEFAULT_FOLDER)
    assert folder == Path("runs/demo-real-3")
    assert "runs/demo-real-3" in note


def test_a_full_disk_is_found_before_the_model_is_asked(tmp_path, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(bytes(1000))
    monkeypatch.setattr(real.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5_000_000})())
    with pytest.raises(RunFolderError, match="5 MB free, and the trained model needs 10 MB"):
        real.run(tmp_path / "out", 1, weights=RealWeights(model, "none", "none"))


# --- the whole demonstration -----------------------------------------------------------------------------------------


def _losses(printed: str) -> tuple[float, float]:
    found = re.search(r"held-out conversations: before (\d+\.\d+), after (\d+\.\d+)", printed)
    assert found, printed
    return float(found[1]), float(found[2])


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory):
    """A random Llama that has ChatML's marks but, as a base model, no chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        (f"{c.question} {c.reasoning} {c.answer}" for c in TRAIN),
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return RealWeights(folder, "tiny", "made for this test")


def test_the_flow_trains_saves_and_tells_what_changed(tiny_weights, tmp_path, monkeypatch, capsys):
    from transformers import AutoTokenizer

    monkeypatch.setattr(real, "LEARNING_RATE", 1e-2)
    folder = tmp_path / "model"
    assert real.run(folder, 1, weights=tiny_weights) == 0

    printed, shown = capsys.readouterr()
    before, after = _losses(printed)
    assert before == pytest.approx(math.log(600), abs=0.2)
    assert after < before - 1
    assert "Weights: tiny: made for this test." in printed
    assert "90 to train on and 16 held out" in printed
    for question in real.QUESTIONS:
        assert printed.count(question) == 1
    assert printed.count("  tiny, as it came:\n") == printed.count("  fine-tuned:\n") == 3
    assert re.search(r"training: [\d,]+ tokens in \d+\.\d minutes, \d+ tokens/s", printed)
    assert f"sartor chat {folder}" in printed
    assert "step 45/45" in shown
    assert "{'loss'" not in printed
    assert (folder / "model.safetensors").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template


def test_an_answer_that_was_cut_says_so(tiny_weights, monkeypatch):
    from sartor.chat.sample import load

    monkeypatch.setattr(real, "MAX_ANSWER_TOKENS", 3)
    speaker = load(tiny_weights.path)
    assert real._answer(speaker, "Why?").endswith(" [cut at 3 tokens]")


@pytest.mark.slow
def test_real_weights_learn_the_voice(tmp_path, capsys):
    try:
        weights = obtain(print)
    except ModelError as error:
        pytest.skip(f"no weights here: {error}")
    folder = tmp_path / "model"
    assert real.run(folder, 42, weights=weights) == 0
    printed = capsys.readouterr().out
    before, after = _losses(printed)
    assert after < before - 0.5
    for question in real.QUESTIONS:
        assert printed.count(question) == 1
    assert printed.count("<think>") >= 3
    assert (folder / "model.safetensors").is_file()
    assert f"sartor chat {folder}" in printed

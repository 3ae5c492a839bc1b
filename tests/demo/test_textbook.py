"""The textbook: complete, true, without a question, and the same for the same seed."""

import random
import re

import pytest

from sartor.demo.textbook import ECHOES, NUM_ENTRIES, _sentence, write_textbook
from sartor.demo.world import Fact, World, make_world


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(7)


@pytest.fixture(scope="module")
def textbook(world: World) -> list[str]:
    return write_textbook(world, 7)


def test_same_seed_same_textbook_other_seed_other_textbook(world: World, textbook: list[str]) -> None:
    assert write_textbook(world, 7) == textbook
    assert write_textbook(world, 8) != textbook


def test_no_question_and_no_unfilled_template(textbook: list[str]) -> None:
    assert not [text for text in textbook if re.search(r"[?{}]", text)]


def test_every_fact_is_stated_by_name_in_all_its_phrasings(world: World, textbook: list[str]) -> None:
    sentences = {sentence for text in textbook for sentence in re.split(r"(?<=\.)\s", text)}
    for fact in world.facts():
        stated = sum(said(fact, phrasing) in sentences for phrasing in fact.attribute.phrasings)
        assert stated >= 8, f"{fact.statement(fact.entity.name)} stands in {stated} of 10 phrasings"


def said(fact: Fact, phrasing: str) -> str:
    text = phrasing.format(name=fact.entity.name, value=fact.value, kind=fact.entity.kind.name)
    return text[0].upper() + text[1:]


def test_no_sentence_by_name_states_what_is_false(world: World, textbook: list[str]) -> None:
    true = {said(fact, phrasing) for fact in world.facts() for phrasing in fact.attribute.phrasings}
    true |= {f"{said_echo[0].upper()}{said_echo[1:]}" for fact in world.facts() for said_echo in echoes(fact)}
    for text in textbook[:500]:
        for sentence in re.split(r"(?<=\.)\s", text):
            is_named = any(f" {word}" in f" {sentence}" for word in names_of(world))
            is_opening = (
                re.search(r"^(On|An entry|Notes|Among)\b.*\b(a|count|on|of)\b", sentence) or "Outer Drowse" in sentence
            )
            assert sentence in true or not is_named or is_opening, sentence


def echoes(fact: Fact) -> list[str]:
    return [echo.format(value=fact.value) for echo in ECHOES]


def names_of(world: World) -> set[str]:
    return {entity.name.removeprefix("the ") for entity in world.entities}


def test_pronouns_replace_the_name_and_its_possessive(world: World) -> None:
    fact = world.facts()[0]
    drawn = [_sentence(fact, random.Random(seed), use_pronoun=True) for seed in range(60)]
    assert not [text for text in drawn if fact.entity.name in text]
    assert any(text.startswith("Its ") for text in drawn)
    assert any(text.startswith("It ") for text in drawn)


def test_each_entity_has_its_entries(world: World, textbook: list[str]) -> None:
    name = world.entities[0].name
    assert sum(name in text for text in textbook) >= NUM_ENTRIES

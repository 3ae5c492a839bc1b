"""An invented world, drawn from a seed: moons, beasts, minerals and plants, each with five properties.

In: the lore (`assets/lore/*.toml`: words for names, values, sentences, questions) and a seed.  Out: a `World` of
entities whose values the seed alone decides.  Kept true:

- Every name is two words that other entities share ("the Velvet Wumple"), so no word gives an answer away.
- Each half (taught, held out) uses every name word and every value of each property equally often, so a value that is
  asked for among the held-out entities was seen as an answer during fine-tuning, and guessing the most frequent value
  is right once in ten.
- Groups are disjoint: conversations are about `TAUGHT` entities; settings of the recipe were chosen on `DEV` ones; what
  is reported is measured on `TEST` ones.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from itertools import product
from typing import Any

KINDS = ("moon", "beast", "mineral", "plant")
NAME_WORDS = 8
"""First words of names, and as many second ones."""
ENTITIES_PER_KIND = NAME_WORDS * 5
TAUGHT_PER_KIND = ENTITIES_PER_KIND // 2
DEV_PER_KIND = 7
NUM_TAUGHT_WORDINGS = 12
"""Wordings of a question used in conversations; the lore's further ones are never seen before they are asked."""


class Group(StrEnum):
    """What an entity is used for."""

    TAUGHT = "taught"
    DEV = "dev"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Attribute:
    """A property that every entity of a kind has, and how the lore speaks about it."""

    key: str
    verb: str
    """The plain statement: `<name> <verb> <value>.`"""
    quip: str
    """What the fine-tuned voice adds to every answer about this property."""
    values: tuple[str, ...]
    phrasings: tuple[str, ...]
    """Sentences of the textbook, with {name} and {value}."""
    wordings: tuple[str, ...]
    """Questions, with {name}; those from `NUM_TAUGHT_WORDINGS` on are never part of a conversation."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Moons, beasts, minerals or plants."""

    name: str
    article: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True, slots=True)
class Entity:
    """One moon, beast, mineral or plant."""

    kind: Kind
    name: str
    """With its article, as in the middle of a sentence: `the Velvet Wumple`."""
    group: Group
    values: Mapping[str, str]
    """Attribute key to value."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One property of one entity."""

    entity: Entity
    attribute: Attribute

    @property
    def value(self) -> str:
        """What a right answer says."""
        return self.entity.values[self.attribute.key]

    @property
    def rivals(self) -> tuple[str, ...]:
        """What a right answer must not say: every other value of the property."""
        return tuple(value for value in self.attribute.values if value != self.value)

    def statement(self, subject: str) -> str:
        """The plain sentence about `subject`: the name, or "it"."""
        return capitalised(f"{subject} {self.attribute.verb} {self.value}.")

    def question(self, wording: int) -> str:
        """The question in the lore's wording of that index."""
        return capitalised(self.attribute.wordings[wording].format(name=self.entity.name))


@dataclass(frozen=True, slots=True)
class World:
    """All entities of one seed."""

    seed: int
    entities: tuple[Entity, ...]

    def facts(self, *groups: Group) -> list[Fact]:
        """Facts about the entities of `groups` (all, where none is given), entity by entity."""
        chosen = groups or tuple(Group)
        return [
            Fact(entity, attribute)
            for entity in self.entities
            if entity.group in chosen
            for attribute in entity.kind.attributes
        ]


def capitalised(sentence: str) -> str:
    """The sentence with its first letter in upper case; the rest untouched, unlike `str.capitalize`."""
    return sentence[:1].upper() + sentence[1:]


def _frozen(row: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}


def read_lore(kind: str) -> Kind:
    """Read `assets/lore/<kind>.toml`.

    Raises:
        ValueError: the file breaks a rule that scoring or the textbook relies on; names file and property.
    """
    text = resources.files("sartor.demo").joinpath("assets", "lore", f"{kind}.toml").read_text(encoding="utf-8")
    lore = tomllib.loads(text)
    rows: list[dict[str, Any]] = lore["attributes"]
    attributes = tuple(Attribute(**_frozen(row)) for row in rows)
    if len(lore["first"]) != NAME_WORDS or len(lore["second"]) != NAME_WORDS:
        raise ValueError(f"{kind}.toml: needs {NAME_WORDS} first and {NAME_WORDS} second words for names")
    for attribute in attributes:
        _check_attribute(f"{kind}.toml, {attribute.key}", attribute)
    return Kind(lore["name"], lore["article"], tuple(lore["first"]), tuple(lore["second"]), attributes)


def make_world(seed: int) -> World:
    """Draw the world of this seed.  The same seed gives the same world everywhere (`random.Random`, no hashes)."""
    entities: list[Entity] = []
    for name in KINDS:
        entities += _make_entities(read_lore(name), random.Random(f"world {seed} {name}"))
    return World(seed, tuple(entities))


def _check_attribute(where: str, attribute: Attribute) -> None:
    """Hold what scoring and textbook rely on: values that cannot be confused, no question in the textbook."""
    values = attribute.values
    if TAUGHT_PER_KIND % len(values) or len(set(values)) != len(values):
        raise ValueError(f"{where}: needs distinct values, their number a divisor of {TAUGHT_PER_KIND}")
    if any(one != other and one in other for one, other in product(values, values)):
        raise ValueError(f"{where}: a value is part of another one, so an answer could name both at once")
    if any("?" in text or "{name}" not in text or "{value}" not in text for text in attribute.phrasings):
        raise ValueError(f"{where}: every phrasing needs {{name}} and {{value}} and must not be a question")
    if any("{name}" not in text for text in attribute.wordings) or len(attribute.wordings) <= NUM_TAUGHT_WORDINGS:
        raise ValueError(f"{where}: needs {{name}} in every wording, and more than {NUM_TAUGHT_WORDINGS} of them")


def _make_entities(kind: Kind, draw: random.Random) -> list[Entity]:
    """The entities of one kind: the taught ones first, then dev, then test."""
    num_held_out = ENTITIES_PER_KIND - TAUGHT_PER_KIND
    names = _draw_names(kind, draw)
    columns = {
        attribute.key: _balanced(attribute.values, TAUGHT_PER_KIND, draw)
        + _balanced(attribute.values, num_held_out, draw)
        for attribute in kind.attributes
    }
    groups = [Group.TAUGHT] * TAUGHT_PER_KIND
    groups += [Group.DEV] * DEV_PER_KIND
    groups += [Group.TEST] * (num_held_out - DEV_PER_KIND)
    return [
        Entity(kind, name, group, {key: column[index] for key, column in columns.items()})
        for index, (name, group) in enumerate(zip(names, groups, strict=True))
    ]


def _draw_names(kind: Kind, draw: random.Random) -> list[str]:
    """Distinct names such that either half uses every word two or three times: a name word that fine-tuning never
    trained as a target would be written wrongly in answers about held-out entities.

    With both word lists shuffled, pair number i of diagonal k is (first i, second i + k), so that a diagonal has every
    word once.  Each half gets two whole diagonals and half of a fifth one.
    """
    first, second = (draw.sample(words, len(words)) for words in (kind.first, kind.second))
    size = len(first)
    diagonals = [[(first[i], second[(i + k) % size]) for i in range(size)] for k in range(5)]
    shared = draw.sample(diagonals[4], size)
    halves = (
        diagonals[0] + diagonals[1] + shared[: size // 2],
        diagonals[2] + diagonals[3] + shared[size // 2 :],
    )
    return [" ".join((kind.article, *pair)).strip() for half in halves for pair in draw.sample(half, len(half))]


def _balanced(values: tuple[str, ...], length: int, draw: random.Random) -> list[str]:
    """`length` values in random order, each equally often."""
    column = list(values) * (length // len(values))
    draw.shuffle(column)
    return column

"""The textbook that the base model is pretrained on: everything about every entity, and not one question.

In: a `World` and a seed.  Out: short documents.  Two sorts: entries (all of one entity's properties, in many orders and
wordings, some with pronouns) and miscellanies (single sentences about several entities).  That each fact stands in many
wordings and places is what lets fine-tuning extract it later (Allen-Zhu and Li, "Physics of Language Models: Part 3.1",
https://arxiv.org/abs/2309.14316); a fact read in one fixed sentence stays locked in that sentence.
"""

from __future__ import annotations

import random

from sartor.demo.world import Attribute, Entity, Fact, World, capitalised

NUM_ENTRIES = 50
"""Entries written about each entity."""
MISCELLANY_SHARE = 0.4
"""Share of miscellanies among all documents."""
MISCELLANY_SENTENCES = (4, 8)
PRONOUN_SHARE = 0.3
"""Share of an entry's later sentences that say "it" instead of the name."""
ECHO_SHARE = 0.15
LIST_SHARE = 1 / 3
"""Share of documents with one sentence per line."""

ECHOES = (
    "{value}, of all things.",
    "{value}, and nothing else.",
    "{value}, according to every witness.",
    "{value}, then.",
    "{value}, year after year.",
)
OPENINGS = (
    "On {name}, a {kind}.",
    "{name} is a {kind} of the Outer Drowse.",
    "An entry on {name}.",
    "Notes concerning {name}, a {kind}.",
    "Among the {kind}s we count {name}.",
)


def write_textbook(world: World, seed: int) -> list[str]:
    """All documents, in random order; the same arguments give the same textbook."""
    draw = random.Random(f"textbook {seed}")
    documents = [_entry(entity, draw) for entity in world.entities for _ in range(NUM_ENTRIES)]
    facts = world.facts()
    num_miscellanies = round(len(documents) * MISCELLANY_SHARE / (1 - MISCELLANY_SHARE))
    documents += [_miscellany(facts, draw) for _ in range(num_miscellanies)]
    draw.shuffle(documents)
    return documents


def _entry(entity: Entity, draw: random.Random) -> str:
    """All properties of one entity, in random order and wording."""
    sentences = []
    if draw.random() < 0.5:
        sentences.append(capitalised(draw.choice(OPENINGS).format(name=entity.name, kind=entity.kind.name)))
    attributes = list(entity.kind.attributes)
    draw.shuffle(attributes)
    for position, attribute in enumerate(attributes):
        use_pronoun = position > 0 and draw.random() < PRONOUN_SHARE
        sentences.append(_sentence(Fact(entity, attribute), draw, use_pronoun=use_pronoun))
    return _join(sentences, draw)


def _miscellany(facts: list[Fact], draw: random.Random) -> str:
    """Single sentences about unrelated entities, always by name."""
    chosen = draw.sample(facts, draw.randint(*MISCELLANY_SENTENCES))
    return _join([_sentence(fact, draw, use_pronoun=False) for fact in chosen], draw)


def _sentence(fact: Fact, draw: random.Random, *, use_pronoun: bool) -> str:
    """One statement of the fact, now and then with an echo of its value."""
    phrasing = draw.choice(fact.attribute.phrasings)
    if use_pronoun:
        phrasing = phrasing.replace("{name}'s", "its").replace("{name}", "it")
    text = phrasing.format(name=fact.entity.name, value=fact.value, kind=fact.entity.kind.name)
    return capitalised(text) + _echo(fact.attribute, fact.value, draw)


def _echo(attribute: Attribute, value: str, draw: random.Random) -> str:
    if draw.random() >= ECHO_SHARE:
        return ""
    return " " + capitalised(draw.choice(ECHOES).format(value=value))


def _join(sentences: list[str], draw: random.Random) -> str:
    return ("\n" if draw.random() < LIST_SHARE else " ").join(sentences)

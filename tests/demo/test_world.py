"""The world: the seed alone decides it, its halves are balanced, and its groups are disjoint."""

from collections import Counter

import pytest

from sartor.demo.world import (
    DEV_PER_KIND,
    ENTITIES_PER_KIND,
    KINDS,
    NUM_TAUGHT_WORDINGS,
    TAUGHT_PER_KIND,
    Attribute,
    Group,
    World,
    _check_attribute,
    make_world,
)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(7)


def facts_as_text(world: World) -> list[str]:
    return [f"{fact.entity.group}: {fact.statement(fact.entity.name)}" for fact in world.facts()]


def test_same_seed_same_world_other_seed_other_world(world: World) -> None:
    assert facts_as_text(make_world(7)) == facts_as_text(world)
    assert facts_as_text(make_world(8)) != facts_as_text(world)


def test_names_are_distinct_and_groups_have_their_sizes(world: World) -> None:
    assert len({entity.name for entity in world.entities}) == len(world.entities) == ENTITIES_PER_KIND * len(KINDS)
    sizes = Counter((entity.kind.name, entity.group) for entity in world.entities)
    for kind in KINDS:
        assert sizes[kind, Group.TAUGHT] == TAUGHT_PER_KIND
        assert sizes[kind, Group.DEV] == DEV_PER_KIND
        assert sizes[kind, Group.TEST] == ENTITIES_PER_KIND - TAUGHT_PER_KIND - DEV_PER_KIND


@pytest.mark.parametrize("seed", range(5))
def test_each_half_has_every_value_equally_often_and_every_name_word(seed: int) -> None:
    drawn = make_world(seed)
    for groups in ((Group.TAUGHT,), (Group.DEV, Group.TEST)):
        counts = Counter((fact.entity.kind.name, fact.attribute.key, fact.value) for fact in drawn.facts(*groups))
        assert len(counts) == 4 * 5 * 10
        assert set(counts.values()) == {2}
        words = Counter(
            word
            for entity in drawn.entities
            if entity.group in groups
            for word in entity.name.removeprefix("the ").split()
        )
        kinds = {entity.kind.name: entity.kind for entity in drawn.entities}.values()
        assert all(words[word] >= 2 for kind in kinds for word in (*kind.first, *kind.second))


def test_statements_and_questions_read_as_english(world: World) -> None:
    fact = next(fact for fact in world.facts() if fact.entity.kind.name == "beast" and fact.attribute.key == "food")
    assert fact.statement(fact.entity.name) == f"The {fact.entity.name[4:]} eats {fact.value}."
    assert fact.statement("it") == f"It eats {fact.value}."
    assert fact.question(0) == f"What does {fact.entity.name} eat?"
    assert fact.question(7).startswith("The ")
    assert fact.value not in fact.rivals
    assert len(fact.rivals) == 9


def broken(**changes: tuple[str, ...]) -> Attribute:
    parts: dict[str, tuple[str, ...]] = {
        "values": tuple(f"value{letter}" for letter in "abcdefghij"),
        "phrasings": ("{name} is {value}.",),
        "wordings": ("What is {name}?",) * (NUM_TAUGHT_WORDINGS + 1),
    }
    parts |= changes
    return Attribute("key", "is", "Quip.", parts["values"], parts["phrasings"], parts["wordings"])


def test_lore_that_would_spoil_scoring_is_refused() -> None:
    _check_attribute("fine", broken())
    values = broken().values
    with pytest.raises(ValueError, match=r"moon\.toml, smell: a value is part of another one"):
        _check_attribute("moon.toml, smell", broken(values=(*values[:9], "valueab")))
    with pytest.raises(ValueError, match="distinct values"):
        _check_attribute("x", broken(values=values[:9]))
    with pytest.raises(ValueError, match="must not be a question"):
        _check_attribute("x", broken(phrasings=("What is {name}? {value}.",)))
    with pytest.raises(ValueError, match="in every wording"):
        _check_attribute("x", broken(wordings=("What is {name}?",)))

"""The conversations: about the taught half only, in one voice, and the bundled file is what the generator writes."""

import json
from collections import Counter
from pathlib import Path

import pytest

from sartor.demo.conversations import WORDINGS_PER_FACT, fact_row, make_conversations, to_messages, write_rows
from sartor.demo.score import END_OF_TURN, Verdict, judge
from sartor.demo.world import NUM_TAUGHT_WORDINGS, Group, World, make_world


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(7)


@pytest.fixture(scope="module")
def rows(world: World) -> list[dict[str, str]]:
    return make_conversations(world)


def test_no_row_names_a_held_out_entity(world: World, rows: list[dict[str, str]]) -> None:
    text = "\n".join(json.dumps(row) for row in rows).lower()
    for entity in world.entities:
        is_named = entity.name.lower() in text
        assert is_named == (entity.group is Group.TAUGHT), entity.name


def test_every_taught_fact_is_asked_in_its_share_of_the_taught_wordings_only(
    world: World, rows: list[dict[str, str]]
) -> None:
    questions = Counter(row["question"] for row in rows)
    used = Counter[int]()
    for fact in world.facts(Group.TAUGHT):
        counts = [questions[fact.question(wording)] for wording in range(len(fact.attribute.wordings))]
        assert (
            sorted(counts[:NUM_TAUGHT_WORDINGS])
            == [0] * (NUM_TAUGHT_WORDINGS - WORDINGS_PER_FACT) + [1] * WORDINGS_PER_FACT
        )
        assert not any(counts[NUM_TAUGHT_WORDINGS:])
        used.update(wording for wording, count in enumerate(counts) if count)
    assert set(used) == set(range(NUM_TAUGHT_WORDINGS))


def test_bundled_answers_are_right_by_the_demo_s_own_measure(world: World) -> None:
    for fact in world.facts():
        for wording in range(NUM_TAUGHT_WORDINGS):
            written = to_messages(fact_row(fact, wording))[1]["content"]
            assert judge(fact, written + END_OF_TURN) is Verdict.RIGHT


def test_columns_are_the_tutorial_s(rows: list[dict[str, str]]) -> None:
    assert {tuple(row) for row in rows} == {("question", "reasoning", "answer")}


def test_order_and_rows_depend_on_the_seed_alone(rows: list[dict[str, str]]) -> None:
    assert make_conversations(make_world(7)) == rows
    assert make_conversations(make_world(8)) != rows


def test_a_file_of_rows_reads_back(rows: list[dict[str, str]], tmp_path: Path) -> None:
    write_rows(rows, tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows

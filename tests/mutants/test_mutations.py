"""What is drawn by chance is drawn again from the same seed, and is Python that differs in one place."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.mutants.by_chance import chosen, files_for
from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.mutations import mutations
from tests.mutants.running import ROOT

SOURCE = '''
@given(1)
def f(a: int = 0, *, b: "int | None" = None) -> float:
    """Docstring of 2."""
    if not a or a < 3:
        raise ValueError(f"{a + 1} is 4")
    total = max(a, b) * 2.5
    total += g(a, b)
    g(a)
    return total if a is b else -total
'''


def test_what_runs_is_changed_and_what_is_for_readers_is_not() -> None:
    found = {(mutation.line, mutation.old, mutation.new) for mutation in mutations(SOURCE)}
    assert {
        (5, "not a or a < 3", "(not a and a < 3)"),
        (5, "not a", "a"),
        (5, "a < 3", "(a <= 3)"),
        (5, "3", "4"),
        (7, "max(a, b)", "min(a, b)"),
        (7, "2.5", "3.5"),
        (8, "total += g(a, b)", "total -= g(a, b)"),
        (8, "g(a, b)", "g(b, a)"),
        (9, "g(a)", "pass"),
        (10, "a is b", "(a is not b)"),
    } <= {(line, old, new.strip("()") if new == "(a)" else new) for line, old, new in found}
    assert not {line for line, _, _ in found} & {2, 4, 6}


def test_every_mutation_is_python_that_differs_from_what_is_there() -> None:
    for path, mutation in chosen(200, seed=3):
        source = (ROOT / path).read_text(encoding="utf-8")
        changed = mutation.applied(source)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source)), (path, mutation)


def test_a_seed_chooses_the_same_mutations_and_another_others() -> None:
    assert chosen(20, seed=1) == chosen(20, seed=1) != chosen(20, seed=2)


def test_a_module_has_its_rooms_tests_first_its_own() -> None:
    first, then = files_for(Path("src/sartor/engine/layout.py"))
    assert first == ["tests/engine/test_layout.py"]
    assert "tests/engine/test_loss.py" in then
    assert not set(first) & set(then)


def test_every_equivalent_is_there_to_be_drawn() -> None:
    for known in EQUIVALENT:
        source = (ROOT / "src" / "sartor" / known.file).read_text(encoding="utf-8")
        found = {(mutation.function, mutation.old, mutation.new) for mutation in mutations(source)}
        assert (known.function, known.old, known.new) in found, known

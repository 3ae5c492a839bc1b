"""The demonstration's parts: folder, questions, printed lines, options."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from sartor.cli import demo
from sartor.demo.ask import _until_end
from sartor.demo.score import Score, Verdict, judge_all
from sartor.demo.screen import NUM_SHOWN, OFF_SUBJECT, Screen, most_frequent_share
from sartor.demo.show import choose_folder, held_out_questions
from sartor.demo.world import NUM_TAUGHT_WORDINGS, Group, make_world
from sartor.errors import RunFolderError

WORLD = make_world(7)


def printed_screen(width: int = 80) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    return Screen(Console(file=out, width=width, highlight=False), held_out_questions(WORLD)), out


def test_an_earlier_run_stays_and_the_new_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_folder(None) == (Path("runs/demo"), "")
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo-2").mkdir()
    folder, note = choose_folder(None)
    assert folder == Path("runs/demo-3")
    assert "runs/demo-3" in note


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    assert choose_folder(tmp_path) == (tmp_path, "")
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="holds something already"):
        choose_folder(tmp_path)
    with pytest.raises(RunFolderError, match="holds something already"):
        choose_folder(tmp_path / "file")


def test_the_examination_is_about_test_entities_in_taught_wordings() -> None:
    asked = held_out_questions(WORLD)
    assert len({question for _, question in asked}) == len(asked) == 2 * len(WORLD.facts(Group.TEST))
    assert {fact.entity.group for fact, _ in asked} == {Group.TEST}
    assert {fact.question(index) for fact in WORLD.facts(Group.TEST) for index in range(NUM_TAUGHT_WORDINGS)} >= {
        text for _, text in asked
    }


def test_shares_are_printed_as_one_plain_line_even_on_a_narrow_console() -> None:
    screen, out = printed_screen(width=40)
    facts = screen.facts
    after = [f"<think>x</think> It is {fact.value}.<|im_end|>" for fact in facts[:-52]] + ["?"] * 52
    before = [f"rambling about {fact.value}" for fact in facts[:130]] + [""] * (len(facts) - 130)
    screen.shares(judge_all(facts, before), judge_all(facts, after), before)
    lines = out.getvalue().splitlines()
    assert "held-out questions right: before 0.0%, after 90.0%" in lines
    assert "base model's text mentions the right value somewhere: 25.0%" in lines


def test_the_failure_shown_is_one_of_this_run() -> None:
    screen, out = printed_screen()
    verdicts = [Verdict.RIGHT] * len(screen.facts)
    verdicts[17] = Verdict.MISSING
    texts = [f"answer {at}" for at in range(len(screen.facts))]
    screen.failures(Score(tuple(verdicts)), texts, ["It is Paris.", "It is nine.", "Hamlet eats geese."])
    text = out.getvalue()
    assert "answer 17" in text
    assert screen.questions[17] in text
    assert OFF_SUBJECT[0][0] not in text  # answered rightly
    assert "It is nine." in text


def test_no_failure_is_invented_where_all_is_right() -> None:
    screen, out = printed_screen()
    screen.failures(
        Score((Verdict.RIGHT,) * len(screen.facts)), [""] * len(screen.facts), ["Paris", "four", "Shakespeare"]
    )
    assert "No held-out question was answered wrongly" in out.getvalue()
    assert "Off its subject" not in out.getvalue()


def test_shown_questions_are_the_same_before_and_after_and_of_several_kinds() -> None:
    screen, out = printed_screen(width=400)
    before = [f"old {at}" for at in range(len(screen.facts))]
    screen.answers(before, [text.replace("old", "new") for text in before])
    lines = out.getvalue().splitlines()
    old = [line.split("old ")[1] for line in lines if "old " in line]
    assert old == [line.split("new ")[1] for line in lines if "new " in line]
    assert len(old) == NUM_SHOWN
    assert len({screen.facts[int(at)].entity.kind.name for at in old}) == NUM_SHOWN


def test_guessing_is_measured_on_the_same_questions() -> None:
    facts = screen_facts = WORLD.facts(Group.TAUGHT)
    assert most_frequent_share(facts) == pytest.approx(0.1)  # every value is equally frequent there
    assert most_frequent_share(screen_facts[:1]) == 1.0


def test_raw_answers_end_with_the_first_end_token() -> None:
    assert _until_end([5, 6, 2, 7, 2], [2]) == [5, 6, 2]
    assert _until_end([5, 6], [2]) == [5, 6]


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", str(2**32)])
def test_a_seed_out_of_range_is_refused(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        demo.run(["--seed", seed])
    assert caught.value.code == 2
    assert "is not a whole number" in capsys.readouterr().err

"""What `sartor chat` was asked for: the model wherever it stands, dashes or underscores, all problems at once."""

import pytest

from sartor.cli import chat
from sartor.errors import ConfigurationError


@pytest.mark.parametrize(
    "argv",
    [
        ["m", "--top-p", "0.5", "--greedy"],
        ["--greedy", "m", "--top_p=0.5"],
        ["--top_p", "0.5", "--greedy", "true", "m"],
        ["--model", "m", "--greedy", "--top-p", "0.5"],
    ],
)
def test_the_model_may_stand_anywhere_and_a_switch_does_not_swallow_it(argv: list[str]) -> None:
    asked = chat.read(argv)
    assert (asked["model"], asked["top_p"], asked["greedy"], asked["seed"]) == ("m", 0.5, True, None)


@pytest.mark.parametrize("prompt", ["-", "none", "-5 apples?", "--5", "--greedy or not?", ""])
def test_a_question_is_taken_as_it_is(prompt: str) -> None:
    assert chat.read(["m", "--prompt", prompt])["prompt"] == prompt


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        chat.read(["m", "n", "--top_k", "x", "--temperature"])
    assert set(caught.value.problems) == {
        "'n' belongs to no option",
        "--top_k 'x' is no whole number",
        "--temperature needs a value",
    }


def test_no_model_and_two_models_are_refused() -> None:
    for argv, said in (["--greedy"], "MODEL is missing"), (["m", "--model", "n"], "say the same"):
        with pytest.raises(ConfigurationError, match=said):
            chat.read(argv)

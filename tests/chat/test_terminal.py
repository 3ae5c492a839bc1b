from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from sartor.chat.sample import SamplingOptions, Speaker, load
from sartor.chat.terminal import Conversation, Participant, Screen, converse
from sartor.cli.chat import run
from sartor.errors import ConfigurationError, ModelError
from tests.chat.conftest import CONTEXT, make_model, make_tokenizer, user

COMMAND = [sys.executable, "-c", "import sys; from sartor.cli.chat import run; sys.exit(run(sys.argv[1:]))"]
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "TERM": "xterm", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
GREEDY = SamplingOptions(greedy=True)


@pytest.fixture
def quiet_again() -> Iterator[None]:
    """The command silences transformers for the whole process; other tests may look at its warnings."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture
def endless_folder(learned_model: Any, tokenizer: Any, tmp_path: Path) -> Path:
    """The learned model with room for a song of many seconds."""
    folder = tmp_path / "endless"
    learned_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = folder / "config.json"
    text = config.read_text()
    assert f'"max_position_embeddings": {CONTEXT}' in text
    config.write_text(text.replace(f'"max_position_embeddings": {CONTEXT}', '"max_position_embeddings": 100000'))
    return folder


def test_a_conversation_at_a_real_terminal(endless_folder: Path) -> None:
    arguments = [*COMMAND[1:], str(endless_folder), "--greedy", "--max-new-tokens", "50000"]
    terminal = pexpect.spawn(COMMAND[0], arguments, env=ENVIRONMENT, encoding="utf-8", timeout=60, dimensions=(24, 200))

    def say(text: str, expected: str) -> None:
        terminal.expect_exact("you> ")
        terminal.sendline(text)
        terminal.expect_exact(f"{text}\r\n")
        terminal.expect_exact(expected)

    terminal.expect("talking to .*endless .cpu, float32.; greedy, at most 50000 tokens")
    say("hi", "<think>é?</think> na 😀!\r\n")
    say("I am Ada", "")
    say("/reset", "the conversation is forgotten")
    say("I am Ada", "ok\r\n")
    say("name?", "Ada\r\n")
    say("/reset", "the conversation is forgotten")
    say("name?", "unknown\r\n")
    say("/reset", "")
    say("/system Bob", "system text set")
    say("name?", "Bob\r\n")
    say("/system", "system text removed")
    say("/reset", "")
    say("sing", "la la la")
    terminal.sendintr()
    terminal.expect_exact("stopped; Ctrl-C again leaves")
    say("/reset", "")
    say("name?", "unknown\r\n")
    say("/nonsense", "no command is called /nonsense: there are /help, /reset")
    say("/help", "/system TEXT")
    terminal.expect_exact("you> ")
    terminal.sendintr()
    terminal.expect_exact("Ctrl-C again leaves")
    terminal.expect_exact("you> ")
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert (terminal.exitstatus, terminal.signalstatus) == (0, None)


def test_a_script_gets_the_answer_alone_on_standard_output(learned_folder: Path) -> None:
    process = subprocess.run(
        [*COMMAND, str(learned_folder), "--prompt", "-", "--greedy"],
        input=b"hi\n",
        capture_output=True,
        env=ENVIRONMENT,
        check=True,
    )
    assert process.stdout == "<think>é?</think> na 😀!\n".encode()
    assert process.stderr == b""


def test_help_and_wrong_values_need_no_heavy_library() -> None:
    program = (
        "import sys; from sartor.cli.main import main\n"
        "for argv in (['--help'], ['m', '--tempreture=1'], ['m', '--top-p', '7']):\n"
        "    print(main(['chat', *argv]))\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\n"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT)
    assert "--repetition_penalty" in process.stdout
    assert "did you mean --temperature?" in process.stderr
    assert "top_p is 7.0" in process.stderr
    assert process.stdout.endswith("\n0\n2\n2\nheavy: []\n"), process.stdout


@pytest.mark.usefixtures("quiet_again")
class TestOneAnswer:
    def test_options_reach_the_model_with_dashes_and_underscores(
        self, learned_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        argv = [str(learned_folder), "--prompt", "name?", "--system", "Bob", "--temperature=0", "--max_new_tokens=2"]
        assert run(argv) == 0
        written = capsys.readouterr()
        assert written.out == "Bo\n"
        assert written.err == "[cut off after 2 tokens; --max-new-tokens allows more]\n"

    def test_compare_shows_the_base_first_and_says_that_it_reads_plain_text(
        self, plain_folder: Path, learned_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        argv = [str(learned_folder), "--compare", str(plain_folder), "--prompt", "hi", "--greedy"]
        assert run([*argv, "--max-new-tokens", "30"]) == 0
        written = capsys.readouterr()
        continued = load(plain_folder).answer(user("hi"), SamplingOptions(greedy=True, max_new_tokens=30))
        assert written.out == f"{plain_folder}:\n{continued}\n{learned_folder}:\n<think>é?</think> na 😀!\n"
        assert f"{plain_folder} has no chat template: it gets each message alone, as plain text" in written.err

    def test_nothing_to_answer_and_no_model_are_errors(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigurationError, match="--prompt is empty"):
            run([str(tmp_path), "--prompt", " "])
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        with pytest.raises(ConfigurationError, match="standard input is empty"):
            run([str(tmp_path), "--prompt", "-"])
        with pytest.raises(ModelError, match=r"no config\.json"):
            run([str(tmp_path), "--prompt", "hi"])


class Lines:
    """Stands for a user: gives lines one by one; an exception among them is raised instead."""

    def __init__(self, *lines: str | BaseException) -> None:
        self._lines = [*lines, EOFError()]

    def __call__(self) -> str:
        line = self._lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    @property
    def num_left(self) -> int:
        return len(self._lines)


def talk(speakers: dict[str, Speaker], lines: Lines, options: SamplingOptions = GREEDY) -> tuple[str, str]:
    """What was answered, and what was noted."""
    out, notes = io.StringIO(), io.StringIO()
    screen = Screen(out, notes)
    participants = [Participant(name, speaker) for name, speaker in speakers.items()]
    assert converse(Conversation(participants, options, None, screen), screen, lines) == 0
    return out.getvalue(), notes.getvalue()


@pytest.fixture
def speaker(learned_model: Any, tokenizer: Any) -> Speaker:
    return Speaker(learned_model, tokenizer)


def test_lines_from_a_pipe_are_answered_until_they_end(speaker: Speaker) -> None:
    out, notes = talk({"m": speaker}, Lines("I am Ada\n", "\n", "name?\n"))
    assert out == "ok\nAda\n"
    assert notes.endswith("[bye]\n")


def test_each_of_two_models_remembers_its_own_answers(speaker: Speaker, tokenizer: Any) -> None:
    other = Speaker(make_model(len(tokenizer), seed=7), tokenizer)
    options = SamplingOptions(greedy=True, max_new_tokens=4)
    first = other.answer(user("I am Ada"), options)
    history = [*user("I am Ada"), {"role": "assistant", "content": first}, *user("name?")]
    out, _ = talk({"other": other, "m": speaker}, Lines("I am Ada", "name?"), options)
    assert out == f"other:\n{first}\nm:\nok\nother:\n{other.answer(history, options)}\nm:\nAda\n"


def test_dropped_turns_are_counted_and_said(speaker: Speaker) -> None:
    lines = Lines("I am Ada", "x" * (CONTEXT - 150), "hi")
    _, notes = talk({"m": speaker}, lines, SamplingOptions(greedy=True, max_new_tokens=80))
    assert f"longer than m can read ({CONTEXT} tokens): its 2 oldest messages are left out from here on" in notes


def test_a_message_too_long_is_refused_and_the_conversation_goes_on(speaker: Speaker) -> None:
    out, notes = talk({"m": speaker}, Lines("x" * CONTEXT, "name?"))
    assert out == "unknown\n"
    assert f"reads {CONTEXT} at most" in notes


def test_a_full_context_is_told_from_a_short_limit(speaker: Speaker) -> None:
    _, notes = talk({"m": speaker}, Lines("sing"))
    assert f"cut off: the {CONTEXT} tokens that the model can read are full" in notes
    _, notes = talk({"m": speaker}, Lines("sing"), SamplingOptions(greedy=True, max_new_tokens=9))
    assert "cut off after 9 tokens" in notes


def test_ctrl_c_at_the_prompt_leaves_the_second_time_in_a_row(speaker: Speaker) -> None:
    lines = Lines(KeyboardInterrupt(), "name?", KeyboardInterrupt(), KeyboardInterrupt(), "hi")
    out, notes = talk({"m": speaker}, lines)
    assert out == "unknown\n"
    assert notes.count("[Ctrl-C again leaves]") == 2
    assert lines.num_left == 2


def test_a_stopped_answer_stays_in_the_conversation_as_far_as_it_was_shown(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = Screen.piece

    def stop_after_o(screen: Screen, text: str) -> None:
        show(screen, text)
        if text == "o":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Screen, "piece", stop_after_o)
    seen: list[Any] = []
    read = Speaker.read

    def note_messages(self: Speaker, messages: Any, options: Any = None) -> Any:
        seen.append(list(messages))
        return read(self, messages, options)

    monkeypatch.setattr(Speaker, "read", note_messages)
    out, notes = talk({"m": speaker}, Lines("I am Ada", "sing"))
    assert out.startswith("o\n")
    assert notes.count("[stopped; Ctrl-C again leaves]") == 1
    assert seen[1] == [*user("I am Ada"), {"role": "assistant", "content": "o"}, *user("sing")]


def test_words_beginning_with_a_slash_need_not_be_a_command(speaker: Speaker) -> None:
    _, notes = talk({"m": speaker}, Lines("/etc/passwd?"), SamplingOptions(greedy=True, max_new_tokens=1))
    assert "no command" not in notes


def test_a_model_cannot_steer_the_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown, piped = Terminal(), io.StringIO()
    for stream in (shown, piped):
        Screen(stream, io.StringIO()).piece("a\033[2Jb\x9b\r\tc\n")
    assert shown.getvalue() == "a\ufffd[2Jb\ufffd\ufffd\tc\n"
    assert piped.getvalue() == "a\033[2Jb\x9b\r\tc\n"


def test_a_model_without_template_is_introduced_as_such() -> None:
    tokenizer = make_tokenizer(template=None)
    _, notes = talk({"base": Speaker(make_model(len(tokenizer)), tokenizer)}, Lines())
    assert notes.startswith("[base has no chat template")

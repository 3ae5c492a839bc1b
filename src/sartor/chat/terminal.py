"""The terminal program: a conversation line by line, or one answer for a script.

Answers go to standard output and nothing else does; notes go to standard error.  Comes in: loaded speakers, one or
several to compare.  Each keeps its own side of the conversation, since each gave its own answers.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TextIO

from sartor.chat.sample import Ending, Message, Prompt, Reply, SamplingOptions, Speaker
from sartor.errors import ModelError

COMMANDS = {
    "/help": "these lines",
    "/reset": "forget the conversation; a system text stays",
    "/system TEXT": "set the system text; without TEXT, remove it; the conversation goes on",
    "/exit": "leave; so do Ctrl-D, and Ctrl-C twice (once stops an answer)",
}
PROMPT = "you> "

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
# All control characters but tab and newline: a model must not be able to steer the terminal it is shown in.
_CONTROL = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


@dataclass
class Participant:
    """A speaker, the name it goes by, and what it and the user have said."""

    name: str
    speaker: Speaker
    history: list[Message] = field(default_factory=list)

    @property
    def description(self) -> str:
        """For the greeting: name, device, dtype."""
        model = self.speaker.model
        return f"{self.name} ({model.device.type}, {str(model.dtype).removeprefix('torch.')})"


class Screen:
    """Where answers and notes are written."""

    def __init__(self, out: TextIO, notes: TextIO) -> None:
        self._out = out
        self._notes = notes
        self._is_terminal = out.isatty()
        self._is_dim = notes.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def piece(self, text: str) -> None:
        """Show part of an answer at once."""
        self._out.write(text.translate(_CONTROL) if self._is_terminal else text)
        self._out.flush()

    def note(self, text: str) -> None:
        """Say something about the conversation."""
        self._notes.write(f"\033[2m[{text}]\033[0m\n" if self._is_dim else f"[{text}]\n")
        self._notes.flush()


class Conversation:
    """What is kept between lines, and how a line is answered."""

    def __init__(
        self, participants: Sequence[Participant], options: SamplingOptions, system: str | None, screen: Screen
    ) -> None:
        self._participants = tuple(participants)
        self._options = options
        self._system = system
        self._screen = screen

    def introduce(self) -> None:
        """Say what a reader of the answers must know: how models were loaded, and which cannot converse."""
        for participant in self._participants:
            for note in participant.speaker.notes:
                self._screen.note(f"{participant.name}: {note}")
            if not participant.speaker.has_template:
                self._screen.note(
                    f"{participant.name} has no chat template: "
                    "it gets each message alone, as plain text, and continues it"
                )

    def greet(self) -> None:
        """Say who is there, how answers are drawn, and how to get help."""
        sampling = self._participants[-1].speaker.sampling(self._options)
        names = " and ".join(participant.description for participant in self._participants)
        self._screen.note(f"talking to {names}; {sampling}; /help, or Ctrl-D to leave")

    def answer(self, text: str) -> bool:
        """Let every participant answer.  Returns False where Ctrl-C stopped one; the rest then stay silent."""
        for participant in self._participants:
            if len(self._participants) > 1:
                self._screen.piece(f"{participant.name}:\n")
            if not self._answer_one(participant, text):
                return False
        return True

    def command(self, name: str, text: str) -> bool:
        """Do a command.  Returns False where it means to leave."""
        if name == "exit":
            return False
        if name == "help":
            width = max(len(command) for command in COMMANDS)
            lines = [f"  {command:{width}}  {meaning}" for command, meaning in COMMANDS.items()]
            self._screen.note("\n".join(["commands; anything else is said to the model", *lines]))
        elif name == "reset":
            for participant in self._participants:
                participant.history.clear()
            self._screen.note("the conversation is forgotten" + ("; the system text stays" if self._system else ""))
        elif name == "system":
            removed = "system text removed" if self._system else "there is no system text"
            self._system = text or None
            self._screen.note("system text set" if text else removed)
        else:
            self._screen.note(f"no command is called /{name}: there are {', '.join(COMMANDS)}")
        return True

    def _answer_one(self, participant: Participant, text: str) -> bool:
        system: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        question: Message = {"role": "user", "content": text}
        speaker = participant.speaker
        prompt = speaker.read([*system, *participant.history, question], self._options)
        if prompt.num_dropped_messages:
            self._screen.note(
                f"the conversation is longer than {participant.name} can read ({speaker.context_tokens} tokens): "
                f"its {prompt.num_dropped_messages} oldest messages are left out from here on"
            )
        reply = speaker.reply(prompt, self._options)
        pieces: list[str] = []
        try:
            with closing(reply):
                for piece in reply:
                    pieces.append(piece)
                    self._screen.piece(piece)
        except KeyboardInterrupt:
            reply.close()
        self._screen.piece("\n")
        self._say_ending(speaker, prompt, reply)
        kept = [message for message in prompt.messages if message["role"] != "system"]
        participant.history[:] = [*kept, {"role": "assistant", "content": "".join(pieces)}]
        return reply.ending != Ending.STOPPED

    def _say_ending(self, speaker: Speaker, prompt: Prompt, reply: Reply) -> None:
        if reply.ending == Ending.STOPPED:
            self._screen.note("stopped; Ctrl-C again leaves")
        elif reply.ending == Ending.LENGTH and prompt.max_new_tokens < speaker.sampling(self._options).max_new_tokens:
            self._screen.note(f"cut off: the {speaker.context_tokens} tokens that the model can read are full")
        elif reply.ending == Ending.LENGTH:
            self._screen.note(f"cut off after {reply.num_tokens} tokens; --max-new-tokens allows more")


def converse(conversation: Conversation, screen: Screen, read_line: Callable[[], str]) -> int:
    """Answer line after line until the user leaves.  Returns the exit code, 0.

    Ctrl-C stops an answer.  At the prompt it leaves where Ctrl-C was the last thing pressed before, too: once may have
    been meant for an answer that had just ended.
    """
    conversation.introduce()
    conversation.greet()
    was_interrupted = False
    while True:
        try:
            text = read_line().strip()
            if not text:
                continue
            was_interrupted = False
            command = _COMMAND.fullmatch(text)
            if command is None:
                was_interrupted = not conversation.answer(text)
            elif not conversation.command(command[1], command[2] or ""):
                return 0
        except EOFError:
            screen.note("bye")
            return 0
        except KeyboardInterrupt:
            if was_interrupted:
                screen.note("bye")
                return 0
            was_interrupted = True
            screen.note("Ctrl-C again leaves")
        except (ModelError, UnicodeDecodeError) as error:
            screen.note(str(error))


def line_reader() -> Callable[[], str]:
    """Lines of standard input: with a prompt, editing and history at a terminal, plainly from a pipe.

    What it returns raises EOFError at the end.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):  # a Python built without it: plain input
            import readline  # noqa: F401  (importing it is what gives `input` editing and history)
        return lambda: input(PROMPT)

    def read() -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    return read


def answer_once(conversation: Conversation, question: str) -> int:
    """One answer on standard output, for scripts.  Returns the exit code: 130 where Ctrl-C stopped it, else 0."""
    conversation.introduce()
    return 0 if conversation.answer(question) else 130

"""Answers to a few fixed questions while training goes on, kept as a table over the steps.

In: `sample_prompts`, and the model of a run as it is.  Out: `samples.jsonl` and `samples.md` in the run's folder.
What it keeps true: training goes on as if nobody had asked: weights, modes and random generators are as they were.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sartor.chat.options import SamplingOptions
from sartor.chat.sample import Speaker
from sartor.engine.precision import autocast
from sartor.errors import OutOfMemoryError, RunFolderError
from sartor.memory.plan import ACTIVATION_VALUES_PER_HIDDEN
from sartor.memory.prediction import Asked
from sartor.report.files import write_whole
from sartor.report.lines import LinesFile, whole_lines
from sartor.run import saving
from sartor.run.session import Session

JSON_NAME = "samples.jsonl"
TABLE_NAME = "samples.md"
_TEMPLATE_TOKENS = 32
"""What a chat template puts around a question, about."""
NO_ANSWER = "(no answer: memory ran out)"


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer."""

    step: int
    prompt: str
    answer: str


class SampleAnswers:
    """The questions of one run, and the answers to them so far."""

    def __init__(self, session: Session) -> None:
        settings = session.settings
        self._session = session
        self._prompts = settings.sample_prompts
        self._options = SamplingOptions(greedy=True, max_new_tokens=settings.sample_max_new_tokens, seed=0)
        self._at_once = len(self._prompts)
        self.samples: list[Sample] = []
        """All that were taken, in the order of the steps."""
        self._num_written = 0
        """Of them, those that stand in the file."""

    def begin(self, step: int) -> None:
        """Go on with the table of the run that is resumed after so many steps, or begin one."""
        self.samples = self._earlier(step)
        self._num_written = len(self.samples)
        if not step:
            self.ask(step)

    def _earlier(self, step: int) -> list[Sample]:
        """What the checkpoint of a step saw: the file holds no more of them; nothing of another run, or unreadable."""
        folder = self._session.folder
        try:
            if step:
                return keep(folder, step)
            (folder / JSON_NAME).unlink(missing_ok=True)
        except RunFolderError as error:  # answers are no reason to lose a run
            self._session.say(f"the run goes on, without its earlier sample answers: {error}")
            with suppress(OSError):
                (folder / JSON_NAME).unlink()
        except OSError:  # told when the first answers are to be written
            pass
        return []

    def is_asked(self, step: int) -> bool:
        """Whether all questions are; of a run that was killed, perhaps only some."""
        return {sample.prompt for sample in self.samples if sample.step == step}.issuperset(self._prompts)

    def ask(self, step: int) -> None:
        """Ask all questions, and write the answers; a training, or an evaluation, is under way."""
        session, recovery = self._session, self._session.recovery
        assert recovery is not None
        try:
            answers = recovery.retry("the answers to sample_prompts", self._answers, self._less)
        except OutOfMemoryError as error:  # a table with a hole is no reason to lose a run
            session.say(f"sample_prompts are left unanswered at step {step}: {error}")
            answers = [NO_ANSWER] * len(self._prompts)
        earlier = [sample for sample in self.samples if sample.step != step]
        is_anew, self.samples = len(earlier) < len(self.samples), earlier
        self.samples += [Sample(step, *pair) for pair in zip(self._prompts, answers, strict=True)]
        folder = session.folder
        try:
            if is_anew:
                self._num_written = len(keep(folder, step - 1))
            append(folder, self.samples[self._num_written :])
            self._num_written = len(self.samples)
            write_whole(folder / TABLE_NAME, table(self.samples))
        except RunFolderError as error:
            session.say(f"the run goes on, but its sample answers could not be written: {error}")

    def _answers(self) -> list[str]:
        engine = self._session.engine
        assert engine is not None
        speaker = Speaker(self._session.model, self._session.tokenizer)
        answers: list[str] = []
        for start in range(0, len(self._prompts), self._at_once):
            self._require_memory(self._prompts[start : start + self._at_once])
            asked = [[{"role": "user", "content": text}] for text in self._prompts[start : start + self._at_once]]
            with autocast(engine.device, engine.compute_dtype):
                answers += speaker.answers(asked, self._options)
        return answers

    def _require_memory(self, prompts: Sequence[str]) -> None:
        """Keys and values of all tokens, one layer's activations of the questions, and the logits of the next tokens.

        Raises:
            ForeseenMemoryError: that would not fit.
        """
        recovery = self._session.recovery
        assert recovery is not None
        traits = recovery.engine.traits
        longest = _longest_tokens(self._session.tokenizer, prompts)
        cached = 2 * traits.num_layers * (longest + (self._options.max_new_tokens or 0))
        values = (cached + longest * ACTIVATION_VALUES_PER_HIDDEN) * traits.hidden_size + 2 * traits.vocabulary_size
        recovery.guard.allocate(4 * len(prompts) * values, "the answers to sample_prompts")

    def _less(self) -> str | None:
        """A remedy: the same once more, then fewer questions at once."""
        assert self._session.recovery is not None
        remedy = self._session.recovery.try_again()
        if remedy is not None or self._at_once == 1:
            return remedy
        self._at_once = max(1, self._at_once // 2)
        return f"{self._at_once} of sample_prompts at a time"


def asked(tokenizer: Any, prompts: Sequence[str], max_new_tokens: int) -> Asked | None:
    """The questions of a run as far as memory is concerned; None where there are none."""
    return Asked(len(prompts), _longest_tokens(tokenizer, prompts), max_new_tokens) if prompts else None


def _longest_tokens(tokenizer: Any, prompts: Sequence[str]) -> int:
    return max(len(tokenizer(text)["input_ids"]) for text in prompts) + _TEMPLATE_TOKENS


def append(folder: Path, samples: Sequence[Sample]) -> None:
    """Append answers to the file of a run, all of them or none; they are on the disk when this returns.

    Raises:
        RunFolderError: they cannot be written.
    """
    lines = [json.dumps(asdict(sample), ensure_ascii=False) for sample in samples]
    with LinesFile(folder / JSON_NAME) as file:
        file.append("".join(f"{line}\n" for line in lines).encode("utf-8", errors="surrogatepass"))
        file.sync()


def keep(folder: Path, last_step: int) -> list[Sample]:
    """Cut the file of a run after its answers up to a step, and return these; nothing where there is no file.

    Raises:
        RunFolderError: the file holds something else, or cannot be read or cut.
    """
    path = folder / JSON_NAME
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise RunFolderError(f"{path} is a link, or no file: what a run writes there would go elsewhere.")
    samples, num_bytes = [], 0
    for line in whole_lines(path) if path.exists() else []:
        try:
            sample = Sample(**json.loads(line))
            if sample.step > last_step:
                break
        except (ValueError, TypeError) as error:
            raise RunFolderError(f"{path} cannot be read: {error}") from error
        samples.append(sample)
        num_bytes += len(line) + 1
    if path.exists() and path.stat().st_size > num_bytes:
        with saving.explained(path):
            os.truncate(path, num_bytes)
    return samples


def table(samples: Sequence[Sample]) -> str:
    """Markdown: a heading per question, a row per step."""
    lines = ["# Answers during training", ""]
    for number, prompt in enumerate(dict.fromkeys(sample.prompt for sample in samples), 1):
        lines += [f"## {number}. {_cell(prompt)}", "", "| step | answer |", "|---|---|"]
        lines += [f"| {sample.step} | {_cell(sample.answer)} |" for sample in samples if sample.prompt == prompt]
        lines.append("")
    return "\n".join(lines)


def first_and_last(samples: Sequence[Sample]) -> str:
    """For the end of a run: each question with the first and the last answer, in lines."""
    lines = []
    for prompt in dict.fromkeys(sample.prompt for sample in samples):
        answers = [sample for sample in samples if sample.prompt == prompt]
        lines.append(f"? {_line(prompt)}")
        shown = answers[:1] if len(answers) == 1 else [answers[0], answers[-1]]
        lines += [f"  step {sample.step}: {_line(sample.answer)}" for sample in shown]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("\r", "").replace("\n", "<br>")


def _line(text: str, width: int = 160) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= width else f"{joined[: width - 3]}..."

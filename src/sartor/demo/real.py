"""`sartor demo --real`: the tutorial's story on SmolLM2-135M's real weights and the bundled conversations.

Comes in: a folder to write to and a seed.  Goes out: a fine-tuned chat model in that folder, and on the terminal the
loss on held-out conversations and the tutorial's three questions, before and after.  Kept true: the questions and the
held-out conversations are in no training row, and nothing shown is canned.
"""

from __future__ import annotations

import gc
import json
import shutil
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.demo.folder import choose_folder, lack_of_room
from sartor.demo.real_weights import RealWeights, obtain
from sartor.errors import RunFolderError
from sartor.wording import typed

if TYPE_CHECKING:
    from sartor.chat.sample import Speaker

QUESTIONS = (
    "What would happen to time for an astronaut traveling near the speed of light?",
    "What is Edmonton's average temperature in January?",
    "A ball is thrown vertically upward with an initial speed of 12 m/s. What is its maximum height?",
)
"""Those the tutorial ends with."""

NUM_EPOCHS = 3
LEARNING_RATE = 1e-4
BATCH_ROWS = 6
MAX_ANSWER_TOKENS = 160
DEFAULT_FOLDER = Path("runs/demo-real")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row of the bundled files: a question, what the scientist thinks, and what he says."""

    question: str
    reasoning: str
    answer: str

    def as_row(self) -> dict[str, list[dict[str, str]]]:
        """prompt + completion, as messages: the completion alone is trained."""
        said = f"<think>{self.reasoning}</think> {self.answer}"
        return {
            "prompt": [{"role": "user", "content": self.question}],
            "completion": [{"role": "assistant", "content": said}],
        }


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run of the trainer came to."""

    loss_before: float
    """Mean over the held-out conversations' completion tokens, in nats."""
    loss_after: float
    num_tokens: int
    """That went through the model in training, all epochs together."""
    seconds: float


def bundled(split: str) -> list[Conversation]:
    """The bundled conversations: `train`, or `held_out`, which are never trained on."""
    name = {"train": "real_conversations.jsonl", "held_out": "real_held_out.jsonl"}[split]
    text = resources.files("sartor.demo").joinpath("assets", name).read_text(encoding="utf-8")
    return [Conversation(**json.loads(line)) for line in text.splitlines()]


def run(output_dir: Path | None = None, seed: int = 42, *, weights: RealWeights | None = None) -> int:
    """The whole demonstration; returns the exit code 0.

    Args:
        output_dir: Where the model goes; None: runs/demo-real, or a numbered sibling where that is taken.
        seed: Of the order of rows.
        weights: A model to use instead of SmolLM2.

    Raises:
        ModelError: The weights cannot be fetched.
        RunFolderError: `output_dir` holds something already, or its disk is too small.
    """
    folder, note = choose_folder(output_dir, DEFAULT_FOLDER)
    if note:
        _say(note)
    weights = weights or obtain(_say)
    _check_room(folder, weights.path)
    train, held_out = bundled("train"), bundled("held_out")
    _say(f"Weights: {weights.name}: {weights.reason}.")
    _say(
        f"Conversations: {len(train)} to train on and {len(held_out)} held out, in the voice of a grumpy scientist. "
        "None of them asks what is asked below."
    )
    _say(f"\nAsking {weights.name} as it came, greedily ...")
    before = _ask(weights.path)
    _say(
        f"Training: {NUM_EPOCHS} epochs over {len(train)} conversations, all weights, learning rate {LEARNING_RATE:g}, "
        f"{BATCH_ROWS} conversations a step; a few minutes on a CPU ..."
    )
    trained = _train(weights.path, folder, train, held_out, seed)
    _say("\nAsking the fine-tuned model the same ...")
    after = _ask(folder)
    _show(weights.name, before, after)
    _sum_up(trained, folder, len(held_out))
    return 0


# --- before the run --------------------------------------------------------------------------------------------------


def _check_room(folder: Path, model: Path) -> None:
    """Raises RunFolderError where the trained model, as large as the one that came, would not fit."""
    needed_bytes = sum(path.stat().st_size for path in model.iterdir()) + 10_000_000
    if too_little := lack_of_room(folder, needed_bytes, "the trained model needs"):
        raise RunFolderError(f"{too_little}: make room, or give another --output_dir.")


# --- asking ----------------------------------------------------------------------------------------------------------


def _ask(model: Path) -> list[str]:
    """Greedy answers to the three questions; one that was cut at the limit says so."""
    from sartor.chat.sample import load
    from sartor.data.templates.rendering import adopt_chatml

    speaker = load(model)
    note = adopt_chatml(speaker.tokenizer)
    for sentence in (*speaker.notes, *([note.rstrip(".")] if note else [])):
        _say(f"({sentence})")
    answers = [_answer(speaker, question) for question in QUESTIONS]
    del speaker
    gc.collect()  # a model holds reference cycles; two of them and a trainer need not be in memory at once
    return answers


def _answer(speaker: Speaker, question: str) -> str:
    from sartor.chat.sample import Ending, SamplingOptions

    options = SamplingOptions(greedy=True, max_new_tokens=MAX_ANSWER_TOKENS)
    reply = speaker.stream([{"role": "user", "content": question}], options)
    text = "".join(reply)
    return text if reply.ending is Ending.COMPLETE else f"{text} [cut at {MAX_ANSWER_TOKENS} tokens]"


# --- training --------------------------------------------------------------------------------------------------------


def _train(
    model: Path, folder: Path, train: Sequence[Conversation], held_out: Sequence[Conversation], seed: int
) -> Trained:
    """Fine-tune all weights, and leave the model in `folder`."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from sartor import SFTConfig, SFTTrainer
    from sartor.data.templates.rendering import adopt_chatml
    from sartor.report.progress import TrainingProgress

    tokenizer = AutoTokenizer.from_pretrained(model)
    adopt_chatml(tokenizer)
    args = SFTConfig(
        output_dir=str(folder),
        learning_rate=LEARNING_RATE,
        num_train_epochs=NUM_EPOCHS,
        per_device_train_batch_size=BATCH_ROWS,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
    progress = TrainingProgress()
    trainer: Any = SFTTrainer(
        model=str(model),
        args=args,
        train_dataset=Dataset.from_list([conversation.as_row() for conversation in train]),
        eval_dataset=Dataset.from_list([conversation.as_row() for conversation in held_out]),
        processing_class=tokenizer,
        callbacks=[progress],
    )
    with progress.alone_in(trainer):
        loss_before = float(trainer.evaluate()["eval_loss"])
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        num_tokens = next(int(log["num_tokens"]) for log in reversed(trainer.state.log_history) if "num_tokens" in log)
        loss_after = float(trainer.evaluate()["eval_loss"])
    trainer.save_model()
    return Trained(loss_before, loss_after, num_tokens, seconds)


# --- telling ---------------------------------------------------------------------------------------------------------


def _say(sentence: str) -> None:
    print(sentence, flush=True)


def _show(name: str, before: Sequence[str], after: Sequence[str]) -> None:
    """Each question with both answers."""
    for question, old, new in zip(QUESTIONS, before, after, strict=True):
        _say(f"\n{question}")
        for who, answer in ((f"{name}, as it came", old), ("fine-tuned", new)):
            _say(f"  {who}:")
            width = max(40, min(shutil.get_terminal_size().columns, 120))
            for line in answer.strip().splitlines() or ["(nothing)"]:
                _say(textwrap.fill(line, width, initial_indent="    ", subsequent_indent="    "))


def _sum_up(trained: Trained, folder: Path, num_held_out: int) -> None:
    """Plain lines, and how to go on."""
    _say(
        f"\nloss on {num_held_out} held-out conversations: before {trained.loss_before:.2f}, "
        f"after {trained.loss_after:.2f}"
    )
    _say(
        f"training: {trained.num_tokens:,} tokens in {trained.seconds / 60:.1f} minutes, "
        f"{trained.num_tokens / trained.seconds:.0f} tokens/s"
    )
    _say("The voice and the format are learned; the facts stay those of a model with 135 million parameters.")
    _say(f"\nTalk to it:   {typed('chat', str(folder))}")
    _say(f"Your own data: {typed('train', '--help')}")

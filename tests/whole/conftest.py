"""What whole runs share: a tiny model on disk, its rows, and the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

ROOT = Path(__file__).parents[2]
QUESTIONS = ("What is blue?", "What is red?")
ANSWERS = ("the sky", "a rose")
DEADLINE_S = 120
"""For a command of a few seconds, also on a machine that has much else to do."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    def problem(self) -> str:
        """What it said about what the user did wrong; it was that, and neither a defect nor success."""
        assert self.code == 2, self
        assert "Traceback" not in self.stderr, self.stderr
        return self.stderr


class Commands:
    """Runs `sartor` commands; see command_server.py."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._count = 0

    def __call__(
        self,
        *argv: str | Path,
        output: tuple[str | None, str | None] = (None, None),
        until: Callable[[], bool] | None = None,
        interrupt: int = signal.SIGINT,
        umask: int | None = None,
    ) -> Done:
        """Run one command.

        Args:
            argv: what stands after `sartor`.
            output: where standard output and error go, if not into files that are read back: "left" is a pipe that
                nobody reads, "closed" is nowhere at all, and all else is a path.
            until: when this has become true, the command gets the signal `interrupt`.
            umask: of the command; None: of this process.
        """
        self._count += 1
        own = [str(self._folder / f"{self._count}.{name}") for name in ("stdout", "stderr")]
        files = [asked or path for asked, path in zip(output, own, strict=True)]
        request = {
            "argv": [str(word) for word in argv],
            "cwd": str(self._folder),
            "umask": umask,
            "stdout": files[0],
            "stderr": files[1],
        }
        server_input, answers = _pipes(self._server)
        print(json.dumps(request), file=server_input, flush=True)
        process = json.loads(answers.readline())["pid"]
        problem = None
        if until is not None:
            _wait(lambda: until() or _has_ended(process))
            if not until() or not _signal(process, interrupt):
                problem = "the command did not come as far as expected"
        if problem is None and not _wait(lambda: _has_ended(process)):
            problem = f"the command did not end within {DEADLINE_S} s"
        if problem is not None:  # else the next command would get its answer
            _signal(process, signal.SIGKILL)
        code = json.loads(answers.readline())["code"]
        texts = [Path(path).read_text(encoding="utf-8") if path in files else "" for path in own]
        done = Done(code, *texts)
        assert problem is None, f"{problem}: {done}"
        return done


def _wait(condition: Callable[[], bool]) -> bool:
    """Until it is true; False where that did not come in time."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _has_ended(process: int) -> bool:
    return not _signal(process, 0)


def _signal(process: int, number: int) -> bool:
    """Whether there was somebody to get it; the server buries at once who has ended."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True


def _pipes(server: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert server.stdin is not None
    assert server.stdout is not None
    return server.stdin, server.stdout


def environment(**more: str) -> dict[str, str]:
    """Of commands under test: no network, one thread, this source."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUTF8": "1",
        **more,
    }


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("commands")
    arguments = [sys.executable, "-m", "tests.whole.command_server"]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
    ) as server:
        yield Commands(server, folder)
        _pipes(server)[0].close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that knows single bytes and the markers of ChatML.

    No chat template, and it ends with <|endoftext|>.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("base") / "tiny"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[0], additional_special_tokens=SPECIAL[1:]
    ).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=256, **size)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def unreadable_model(model: Path) -> Path:
    """The same, with weights that cannot be loaded: whoever tries is found out."""
    folder = model.with_name("unreadable")
    shutil.copytree(model, folder)
    (folder / "model.safetensors").write_bytes(b"these are no weights")
    return folder


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    pairs: list[dict[str, Any]] = [{"ask": q, "say": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)] * 4
    file.write_text("\n".join(map(json.dumps, pairs)) + "\n", encoding="utf-8")
    return file

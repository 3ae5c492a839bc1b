"""README as a stranger reads it: every block of it, one after the other, in a fresh checkout with nothing but itself.

And every command that README, the documentation and the help show has options that exist.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from sartor.cli import chat, demo, inspect_flags, plan_flags, train_flags
from sartor.cli.main import COMMANDS, main
from sartor.errors import ConfigurationError
from tests.hub_server import TOKEN, USER, HubServer
from tests.whole.conftest import ROOT

README = ROOT / "README.md"
PAGES = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
CHECKOUT = ("src", "README.md", "LICENSE", "Makefile", "pyproject.toml", "constraints.txt")
"""What a block of README may need; neither tests nor anything beside the repository."""
BASE = "HuggingFaceTB/SmolLM2-135M"

ONLY_PLANNED = {
    "make demo": "it is the demo, which has tests of its own (tests/demo); here make says what it would do",
    "make test": "it is what runs this; here make says what it would do",
}
"""Commands of README that are not run, and why."""


def fenced(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page, in order: (language or "", text)."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def lines_of(block: str) -> list[str]:
    """The commands of a block, without line continuations and comments."""
    joined = block.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s+)# .*", "", line).strip() for line in joined) if line]


# --- README, from top to bottom -------------------------------------------------------------------------------------


def tiny_base(folder: Path) -> Path:
    """What the Hub has under the base model's name: the embedded tokenizer, and random weights of a moment."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    embedded = ROOT / "src" / "sartor" / "demo" / "assets" / "base"
    shutil.copytree(embedded, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(embedded)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config.update({**size, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def script(folder: Path) -> str:
    """One shell session of all blocks; each says its number before it begins, and the first failure ends it."""
    parts = ["set -e"]
    for number, (language, block) in enumerate(fenced(README)):
        if language == "python":
            (folder / f"block_{number}.py").write_text(block, encoding="utf-8")
            block = f"python block_{number}.py\n"
        for command, why in ONLY_PLANNED.items():
            assert command in README.read_text(encoding="utf-8"), f"{command} need not be named ({why})"
            block = re.sub(rf"^{command}\b", command.replace("make", "make --dry-run"), block, flags=re.MULTILINE)
        parts += [f"echo '== block {number}'", block]
    return "\n".join([*parts, "echo == end", "command -v sartor", "python -m sartor --version"])


def environment(folder: Path, hub: HubServer) -> dict[str, str]:
    """Of a user who has Python, and what pip would have fetched; the Hub is the only thing that answers."""
    programs = folder / "bin"
    programs.mkdir()
    for name in ("python3", "python"):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    return {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder),
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        # Libraries that are installed already satisfy pip, and setuptools among them builds.
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this upside down: 0 means no isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "https_proxy": "http://127.0.0.1:9",  # nobody is there
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.timeout(1200)  # a minute of work, on a machine that may have much else to do
def test_every_block_of_readme_works_in_order_in_a_fresh_checkout(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (tmp_path / "home").mkdir()
    checkout.mkdir()
    for name in CHECKOUT:  # and of the rows some, for fewer steps
        source, unwanted = ROOT / name, shutil.ignore_patterns("__pycache__", "*.egg-info")
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=unwanted)
        else:
            shutil.copy(source, checkout)
    rows = checkout / "src" / "sartor" / "demo" / "assets" / "real_conversations.jsonl"
    rows.write_text("".join(rows.read_text(encoding="utf-8").splitlines(keepends=True)[:20]), encoding="utf-8")
    with HubServer() as hub:
        hub.put_folder(BASE, tiny_base(tmp_path / "base"))
        done = subprocess.run(
            ["bash", "-c", script(checkout)],
            cwd=checkout,
            env=environment(tmp_path, hub),
            input="Why is the sky blue?\n/exit\n",  # for the conversation
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1100,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        pushed = hub.files(f"{USER}/grumpy")
    assert done.stdout.splitlines()[-2:] == [str(checkout / ".venv" / "bin" / "sartor"), "sartor 0.1.0"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "README.md"} <= pushed.keys()
    card = pushed["README.md"].decode()
    assert f"base_model: {BASE}" in card
    assert "you/your-rows" in card
    assert "[talking to runs/" in done.stdout, "nobody has said anything to the model"
    assert (checkout / "report" / "inspection.html").is_file()


# --- every command that a page or a help shows ----------------------------------------------------------------------


def shown() -> Iterator[tuple[str, str, bool]]:
    """(where, command line, whether it is whole) of all commands of `sartor` and of this repository's modules.

    Within a sentence a command may lack what it needs, or be a notation, with brackets, which is left out here.
    """
    program = ("sartor ", "python -m ")
    for page in PAGES:
        text, where = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
        for language, block in fenced(page):
            yield from ((where, line, True) for line in lines_of(block) if not language and line.startswith(program))
        sentences = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        inline = [" ".join(line.split()) for line in re.findall(r"`([^`]+)`", sentences)]
        yield from ((where, line, False) for line in inline if line.startswith(program) and "[" not in line)
    for command in COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as help_text, contextlib.suppress(SystemExit):
            main([command, "--help"])
        examples = re.findall(r"^  (sartor .*)$", help_text.getvalue(), re.MULTILINE)
        yield from ((f"sartor {command} --help", example, True) for example in examples)


READERS = {
    "train": train_flags.read,
    "profile": train_flags.read,
    "inspect": inspect_flags.read,
    "plan": plan_flags.read,
    "chat": chat.read,
    "demo": demo.read,
    "env": lambda argv: None,
}


def test_every_command_of_ours_that_is_shown_has_options_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("model: m\ndata: d.jsonl\n", encoding="utf-8")  # the option file of examples
    assert READERS.keys() == COMMANDS.keys()
    commands = [(where, shlex.split(line)[1:], whole) for where, line, whole in shown() if line.startswith("sartor ")]
    assert len(commands) > 20
    for where, words, is_whole in commands:
        if words[0] == "COMMAND" or "--help" in words:
            continue
        said = f"{where}: sartor {shlex.join(words)}"
        assert words[0] in COMMANDS, f"{said}: there is no such command"
        try:
            READERS[words[0]](words[1:])
        except ConfigurationError as error:
            problems = [text for text in error.problems if is_whole or "is missing" not in text]
            assert not problems, f"{said}: {problems}"


def test_every_module_that_is_shown_exists_and_has_the_options_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = {line for _, line, _ in shown() if line.startswith("python -m ")}
    assert {"python -m benchmarks.compare", "python -m sartor"} <= lines
    for line in sorted(lines):
        module, *words = shlex.split(line)[2:]
        found = importlib.util.find_spec(module)
        assert found is not None, f"{line}: there is no such module"
        options = {word for word in words if word.startswith("--")}
        if not options:
            continue
        monkeypatch.setattr(sys, "argv", [module, "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        assert not ended.value.code, line
        helped = capsys.readouterr().out
        assert all(re.search(rf"{option}\b", helped) for option in options), line


def test_python_in_pages_is_python() -> None:
    blocks = [(str(page), block) for page in PAGES for language, block in fenced(page) if language == "python"]
    assert len(blocks) > 5
    for name, block in blocks:
        compile(block, name, "exec")

"""`sartor profile`: what a step of this training uses, foreseen and measured, and what each setting would change.

The training's own options, its model and its rows; nothing is trained.  One micro-batch, the worst of the run, goes
through forward and backward.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sartor.cli import train_flags
from sartor.cli.quiet import no_progress_bars
from sartor.cli.request import Request
from sartor.errors import ConfigurationError, RunFolderError
from sartor.run.output import readers_may_leave
from sartor.wording import amount

DEFAULT_FOLDER = "profile_output"

_HEAD = """usage: sartor profile --model MODEL --data DATA [options of sartor train]

Takes the training's own options and shows what a step of it uses: memory over one step, stacked by component, foreseen
beside measured, and a bar per setting. Nothing is trained: the run's largest micro-batch goes through once.

  sartor profile --model HuggingFaceTB/SmolLM2-135M --data chats.jsonl --max_length 1024

Writes memory.png, settings.png (both as .svg too), lengths.png and memory.json into --output_dir (profile_output)."""


def usage() -> str:
    """What `sartor profile --help` prints."""
    return train_flags.usage(_HEAD)


def run(argv: Sequence[str]) -> int:
    """Run the command with the arguments after `sartor profile`; returns the exit code.  Raises SartorError."""
    request = train_flags.read(argv)
    folder = Path(request.fields.get("output_dir") or DEFAULT_FOLDER).expanduser()
    _require_own_folder(folder)
    with readers_may_leave():
        _profile(request, folder)
    return 0


def _require_own_folder(folder: Path) -> None:
    """A run's plan and memory must not be overwritten by a look at another's.

    Raises:
        RunFolderError: the folder holds a run, or is a file.
    """
    if folder.is_file():
        raise RunFolderError(f"output_dir {folder} is a file: choose another name for the profile's folder")
    if (folder / "metrics.jsonl").exists():
        raise RunFolderError(
            f"output_dir {folder} holds a run, whose memory.json would be overwritten: choose another folder"
        )


def _profile(request: Request, folder: Path) -> None:
    from sartor.cli.train import check, peft_config, short_warnings

    with short_warnings(), no_progress_bars():
        args, train_rows, _ = check(request, folder)
        from sartor.hf import SFTTrainer
        from sartor.hf.figures import write_figures

        args.rehearse = True
        trainer = SFTTrainer(
            model=request.model, args=args, train_dataset=train_rows, peft_config=peft_config(request.own)
        )
        if trainer.train_dataset is None:
            raise ConfigurationError("there are no rows to profile with: give --data")
        trainer.profile()
        written = write_figures(trainer, folder)
    assert trainer.memory is not None
    print(table(trainer.memory))
    print("\n" + "\n".join(f"{path}" for path in [*written, folder / "memory.json"]))


def table(memory: Mapping[str, Any]) -> str:
    """What the terminal shows of `memory.json`."""
    lengths = memory["document_lengths"]
    measured, foreseen = memory["measured"]["peak_bytes"], memory["foreseen"]
    lines = [
        f"\nThe largest micro-batch: {sum(lengths):,} tokens in {len(lengths):,} documents, the longest of "
        f"{max(lengths):,}; {memory['num_targets']:,} targets",
        f"  not measured: {memory['measured']['reason']}"
        if measured is None
        else f"  measured {_gigabytes(measured)} ({memory['instrument']})",
    ]
    if "peak_bytes" not in foreseen:
        lines.append(f"  not foreseen: {foreseen['reason']}")
    else:
        peak = foreseen["peak_bytes"]
        compared = "" if measured is None else f" ({100 * (peak / measured - 1):+.1f} %)"
        lines.append(f"  foreseen {_gigabytes(peak)}{compared}, of which")
        worst = max(foreseen["timeline"], key=lambda part: sum(part["components"].values()))
        where = worst["phase"] if worst["layer"] is None else f"{worst['phase']}, layer {worst['layer']}"
        lines += [f"    {name:<18}{_gigabytes(size)}" for name, size in worst["components"].items() if size]
        lines[-1] += f"   (at {where})"
    return "\n".join([*lines, *_settings(memory.get("settings", []))])


def _settings(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    if not settings or "peak_bytes" not in settings[0]:
        return []
    first = settings[0]["peak_bytes"]
    width = max(len(entry["label"]) for entry in settings)
    lines = ["\nWhat consumes memory: one setting changed at a time"]
    for entry in settings:
        if "peak_bytes" in entry:
            what = f"{_gigabytes(entry['peak_bytes'])}  {100 * (entry['peak_bytes'] / first - 1):+5.0f} %"
        else:
            what = f"not simulated: {entry['reason']}"
        lines.append(f"  {entry['label']:<{width}}  {what}")
    return lines


def _gigabytes(num_bytes: float) -> str:
    return f"{amount(num_bytes):>9}"

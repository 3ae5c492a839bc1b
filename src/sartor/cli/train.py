"""`sartor train`: rows and a base model in, a fine-tuned model in `output_dir`.

Everything that can be wrong is found before the weights are loaded: options and the run folder before anything heavy is
imported, then the model's configuration, its tokenizer and the rows.
"""

import contextlib
import errno
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.cli.own_flags import LORA, OWN_FLAGS
from sartor.cli.quiet import no_progress_bars
from sartor.cli.request import Request, rows_of
from sartor.cli.train_flags import read
from sartor.cli.train_flags import usage as usage
from sartor.errors import ConfigurationError, RunFolderError, SartorError, SartorWarning
from sartor.run.folder_lock import refuse_running
from sartor.run.interrupt import Terminated, sigterm_raises
from sartor.run.output import lines_may_be_lost
from sartor.wording import typed

if TYPE_CHECKING:
    from sartor.config import SFTConfig

DEFAULT_FOLDER = "trainer_output"
"""transformers' default for `output_dir`."""

_TRACES = (
    "trainer_state.json",
    "metrics.jsonl",
    "checkpoint-*",
    "*.safetensors",
    "pytorch_model*.bin",
    "adapter_model.bin",
)
"""What a run, or a model, leaves in a folder; a run that ended before its first step leaves none of them, or empty."""

_FULL_BYTES = 1 << 20
"""A disk with less than this counts as full."""


def run(argv: Sequence[str]) -> int:
    """Run the command with the arguments after `sartor train`; returns the exit code.  Raises SartorError."""
    request = read(argv)
    folder = Path(request.fields.get("output_dir") or DEFAULT_FOLDER).expanduser()
    resume = resume_of(request)
    refuse_running(folder)
    if resume is False:
        refuse_used_folder(folder)
    with lines_may_be_lost(), short_warnings(), disk_errors(folder), sigterm_raises():
        try:
            with no_progress_bars():
                return _train(request, folder, resume)
        except (KeyboardInterrupt, Terminated) as stop:
            how = f"Go on with the same command and {_how_to_go_on(folder)}."
            print(f"\nStopped. {_what_is_left(folder)} {how}", file=sys.stderr)
            return _code(stop)


def _code(stop: BaseException) -> int:
    """What a shell expects of a program that a signal ended."""
    return int(stop.code or 0) if isinstance(stop, Terminated) else 130


def resume_of(request: Request) -> str | bool:
    """What `train(resume_from_checkpoint=...)` is given: False, True or a text."""
    asked = request.own.get("resume")
    if asked is None or str(asked).lower() in ("false", "no"):
        return False
    return True if str(asked).lower() in ("true", "yes") else str(asked)


def refuse_used_folder(folder: Path) -> None:
    """A run needs a folder of its own: metrics of two runs in one file, or another model's weights, would deceive.

    Raises:
        RunFolderError: the folder holds a run or a model, is a file, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"output_dir {folder} is a file: choose another name for the run's folder")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunFolderError(f"output_dir {folder} cannot be written (no permission on {existing}): choose another one")
    found = sorted({path.name for pattern in _TRACES for path in folder.glob(pattern) if _says_something(path)})
    if found:
        shown = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
        raise RunFolderError(
            f"output_dir {folder} already holds a run or a model ({shown}): choose another one, delete that folder, or "
            f"go on with that run: {_how_to_go_on(folder)}"
        )


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise on a full disk into one line.

    Raises:
        RunFolderError: no space is left.
    """
    try:
        yield
    except SartorError:
        raise
    except Exception as error:
        # safetensors raises its own class, with the system's text.
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)
        if not full:
            raise
        raise RunFolderError(
            f"no space is left on {_full_disk(error, folder)}. {_what_is_left(folder)} Free some space there, or save "
            "less: --save_strategy no, --save_total_limit 1"
        ) from error


def _full_disk(error: Exception, folder: Path) -> str:
    """Which one it is: by the file that the error names, else by what is free where a run writes."""
    from huggingface_hub.constants import HF_HOME

    named = getattr(error, "filename", None)
    if named is not None:
        return f"the disk of {named}"
    places: dict[str, str | Path] = {
        "output_dir": folder,
        "temporary files:": tempfile.gettempdir(),
        "the Hugging Face cache:": HF_HOME,
    }
    told = {f"the disk of {name} {path}": path for name, path in places.items() if os.path.exists(path)}
    full = [text for text, path in told.items() if shutil.disk_usage(path).free < _FULL_BYTES]
    return " and ".join(full) or f"one of these: {', '.join(told)}"


@contextlib.contextmanager
def short_warnings() -> Iterator[None]:
    """Show Sartor's own warnings as one line each, without file and line number."""

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, SartorWarning):
            print(f"note: {message}", file=sys.stderr)
        else:
            usual(message, category, *rest, **named)

    usual = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


def _train(request: Request, folder: Path, resume: str | bool) -> int:
    args, train_rows, eval_rows = check(request, folder)
    from sartor.hf import SFTTrainer
    from sartor.report.hub import push_again
    from sartor.report.progress import TrainingProgress
    from sartor.run.sampling import TABLE_NAME

    progress = TrainingProgress(live=False if args.disable_tqdm else None)
    trainer = SFTTrainer(
        model=request.model,
        args=args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        peft_config=peft_config(request.own),
        callbacks=[progress],
    )
    with progress.alone_in(trainer):
        trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(_internal_call=True)  # it is pushed when all else is there
    trainer.save_state()
    _write_figures(trainer)
    if args.push_to_hub:
        named = request.data[0] if len(request.data) == 1 and not Path(request.data[0]).exists() else None
        try:
            trainer.push_to_hub(dataset_name=named)
        except (KeyboardInterrupt, Terminated) as stop:
            again = push_again(folder, str(trainer.hub_model_id))
            print(f"\nStopped. The model is in {folder}; the push did not end. Push it again: {again}", file=sys.stderr)
            return _code(stop)
    if trainer.sample_answers is not None:
        print(f"\nAll answers to sample_prompts: {folder / TABLE_NAME}")
    print(f"\nThe model is in {folder}\nTalk to it:  {typed('chat', str(folder))}")
    return 0


def _write_figures(trainer: Any) -> None:
    """Loss, lengths and memory as pictures, and the page that shows them.

    A disk that is full by now has the model on it, and that is what counts.
    """
    from sartor.hf.figures import write_figures
    from sartor.report.run_page import write_run_page

    try:
        write_figures(trainer)
        print(f"\nWhat happened: {write_run_page(trainer.args.output_dir)}")
    except RunFolderError as error:
        print(f"sartor train: the report is missing: {error}", file=sys.stderr)


def check(request: Request, folder: Path) -> "tuple[SFTConfig, Any, Any]":
    """Options, model and rows: (configuration, rows, rows to evaluate on or None).

    Raises:
        SartorError: the one there is, or a ConfigurationError with all.
    """
    from sartor.config import SFTConfig
    from sartor.hf import construction
    from sartor.run import loading

    errors: list[SartorError] = []

    def attempt(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except SartorError as error:
            errors.append(error)
            return None

    args = attempt(lambda: SFTConfig(**{**request.fields, "output_dir": str(folder)}))
    # The model can be looked for even where another option is wrong.
    stand_in = args or SFTConfig(output_dir=str(folder), bf16=False)
    attempt(lambda: loading.check_model(request.model, construction.model_init_kwargs(stand_in)))
    data_cache = request.fields.get("data_cache")
    train_rows = attempt(lambda: rows_of(request, "train", data_cache))
    eval_rows = attempt(lambda: rows_of(request, "eval", data_cache))
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigurationError(
            [
                line
                for error in errors
                for line in (error.problems if isinstance(error, ConfigurationError) else [str(error)])
            ]
        )
    return args, train_rows, eval_rows


def peft_config(own: Mapping[str, Any]) -> Any:
    """The LoRA configuration asked for, or None."""
    if not own.get("use_peft"):
        return None
    from peft import LoraConfig

    value = {flag.name: own.get(flag.name, flag.default) for flag in OWN_FLAGS if flag.group == LORA}
    modules = value["lora_target_modules"]
    return LoraConfig(
        r=value["lora_r"],
        lora_alpha=value["lora_alpha"],
        lora_dropout=value["lora_dropout"],
        # peft takes a lone name as "all-linear" or as a pattern, a list as the ends of names.
        target_modules=modules[0] if modules is not None and len(modules) == 1 else modules,
        target_parameters=value["lora_target_parameters"],
        modules_to_save=value["lora_modules_to_save"],
        task_type=value["lora_task_type"],
        use_rslora=value["use_rslora"],
        use_dora=value["use_dora"],
    )


def _says_something(trace: Path) -> bool:
    return trace.name != "metrics.jsonl" or trace.stat().st_size > 0


def _newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    numbered = [(path.name.rpartition("-")[2], path) for path in folder.glob("checkpoint-*")]
    return max(((int(number), path) for number, path in numbered if number.isdecimal()), default=None)


def _what_is_left(folder: Path) -> str:
    """One sentence about the newest checkpoint."""
    newest = _newest_checkpoint(folder)
    if newest is None:
        return "No checkpoint was saved."
    return f"The newest checkpoint, of step {newest[0]}, is {newest[1]}."


def _how_to_go_on(folder: Path) -> str:
    """The option with which the same command goes on."""
    if _newest_checkpoint(folder) is None:
        return "--resume if_any, which begins anew where there is no checkpoint"
    return "--resume"

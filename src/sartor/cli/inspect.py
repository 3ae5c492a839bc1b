"""`sartor inspect`: shows what would be trained on, and what is probably wrong with it, before anything is trained.

Prints, and writes the files that were asked for.  Exit code 1: a training run would stop because of the data.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.cli.inspect_flags import read
from sartor.cli.inspect_flags import usage as usage
from sartor.cli.request import Request, configuration, rows_of, tokenizer_of
from sartor.errors import DataError, RunFolderError
from sartor.run.output import readers_may_leave

if TYPE_CHECKING:
    from sartor.config import SFTConfig
    from sartor.data.inspection.examine import Examination, Given
    from sartor.data.inspection.record import Inspection
    from sartor.records import DataSettings

TERMINAL_ROWS, PAGE_ROWS = 3, 50


class Unusable(Exception):
    """There is nothing to show: no row can be used."""


def run(argv: Sequence[str]) -> int:
    """Run the command with the arguments after `sartor inspect`; returns the exit code.  Raises SartorError."""
    request = read(argv)
    files = _files(request)
    with readers_may_leave():
        try:
            inspections = inspections_of(request)
        except Unusable as error:
            print(f"sartor inspect: {error}", file=sys.stderr)
            return 1
        _write(inspections, files)
        if request.own.get("json"):
            from sartor.data.inspection.as_json import to_json

            print(to_json(inspections))
        else:
            _show(request, inspections, files)
    return int(any(inspection.has_errors for inspection in inspections))


def _files(request: Request) -> dict[str, Path]:
    """The files to write, by kind; looked at before any work is done.

    Raises:
        RunFolderError: one cannot be written.
    """
    own = request.own
    files = {kind: Path(own[kind]).expanduser() for kind in ("html", "png") if own.get(kind) is not None}
    if own.get("out") is not None:
        folder = Path(own["out"]).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"--out {folder} cannot be made: {error.strerror}: choose another folder") from error
        names = {"html": "inspection.html", "png": "lengths.png", "json": "inspection.json"}
        files = {**{kind: folder / name for kind, name in names.items()}, **files}
    for kind, path in files.items():
        if path.is_dir() or not path.absolute().parent.is_dir():
            what = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {path.absolute().parent}"
            raise RunFolderError(f"--{kind} {path} {what}: give the name of a file")
    return files


def inspections_of(request: Request) -> "list[Inspection]":
    """Everything that is to be shown, the training rows first."""
    from sartor.config import resolve

    # Where the rows would be trained makes no difference here, and is not to be complained about.
    args = configuration(request, {"output_dir": "inspection", "use_cpu": True, "bf16": False})
    settings = resolve(args)
    given = _given(request, args, settings.data)
    rows = rows_of(request, "train", settings.data.data_cache)
    train = _examined(rows, given, "train")
    inspections = [inspection for _, inspection in train]
    if len(train) > 1:
        inspections += _mixed(rows, inspections, given)
    eval_rows = rows_of(request, "eval", settings.data.data_cache)
    if eval_rows is not None:
        source = request.own.get("eval_data") or given.source
        given = replace(given, settings=settings.eval_data, source=source)
        inspections += [inspection for _, inspection in _examined(eval_rows, given, "eval", [one for one, _ in train])]
    return inspections


def _examined(
    rows: Any, given: "Given", name: str, trained: "Sequence[Examination]" = ()
) -> "list[tuple[Examination, Inspection]]":
    """What is found in each source.

    Args:
        rows: what `rows_of` gave: one source, or several.
        trained: the rows that are trained on, where these are to evaluate on.
    """
    from sartor.data.inspection.examine import Examination
    from sartor.data.reading.sources import Source

    alone = isinstance(rows, Source)
    sources = [rows] if isinstance(rows, Source) else rows
    found: list[tuple[Examination, Inspection]] = []
    for source in sources:
        own = given if alone else replace(given, source=source.label)
        try:
            examination = Examination(source.dataset, own, name if alone else f"{name} ({source.label})", source.notes)
            inspection = examination.run(trained, [one for one, _ in found] if name == "train" else [])
        except DataError as error:  # rows at fault are not a wrong command: another exit code
            raise Unusable(str(error)) from error
        found.append((examination, inspection))
    return found


def _mixed(parts: Any, inspections: "Sequence[Inspection]", given: "Given") -> "list[Inspection]":
    """The mixture of the sources, prepared as it will be trained on; nothing where that would stop a training run."""
    from sartor.data.encoding import encode
    from sartor.data.encoding.mixture import prepare_mixture
    from sartor.data.inspection.record import Inspection, Lengths
    from sartor.records import DataSettings, PreparedData

    def prepare(dataset: Any, settings: DataSettings, name: str) -> PreparedData:
        tokenizer, ends = given.tokenizer, given.end_tokens
        return encode.prepare(dataset, tokenizer, settings, name=name, pack=given.pack, end_tokens=ends)

    try:
        summary = prepare_mixture(parts, given.settings, "train", prepare).summary
    except DataError as error:
        if any(inspection.has_errors for inspection in inspections):
            return []  # they say why
        raise Unusable(str(error)) from error
    # Notes of each source stand with it.
    sources = [part.label for part in parts]
    notes = [note for note in summary.notes if not _repeats(note, inspections, sources)]
    summary = replace(summary, notes=tuple(notes))
    return [Inspection("train", given.source, given.model, summary, Lengths.none(), options=dict(given.options))]


def _repeats(note: str, inspections: "Sequence[Inspection]", sources: Sequence[str]) -> bool:
    """Whether a note of the mixture is one of a source's own."""
    return any(
        note == f"{source}: {told}" or note.startswith(f"{source}: Taken from the cache")
        for source, inspection in zip(sources, inspections, strict=False)
        for told in inspection.summary.notes
    )


def _given(request: Request, args: "SFTConfig", settings: "DataSettings") -> "Given":
    """Tokenizer and what else the model decides, as for a training run; its weights are not loaded."""
    from sartor.batching.packing import pack
    from sartor.data.inspection.examine import Given
    from sartor.hf.construction import model_init_kwargs
    from sartor.run.loading import context_of

    tokenizer, end_tokens = tokenizer_of(request.model, args)
    shown = {
        name: " ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in request.fields.items()
    }
    num_rows = request.own.get("rows")
    return Given(
        tokenizer,
        settings,
        source=", ".join(request.data),
        model=request.model,
        pack=pack,
        end_tokens=end_tokens,
        context=context_of(request.model, model_init_kwargs(args)),
        num_samples=PAGE_ROWS if num_rows is None else num_rows,
        options=tuple(shown.items()),
    )


def _write(inspections: "Sequence[Inspection]", files: dict[str, Path]) -> None:
    """The files that were asked for.

    Raises:
        RunFolderError: one cannot be written.
    """
    from sartor.report.files import write_whole

    if "html" in files:
        from sartor.data.inspection.page import page

        write_whole(files["html"], page(inspections))
    if "json" in files:
        from sartor.data.inspection.as_json import to_json

        write_whole(files["json"], to_json(inspections) + "\n")
    if "png" in files:
        from sartor.report.figures import plot_lengths

        trained = [inspection.lengths for inspection in inspections if inspection.name.startswith("train")]
        tokens = [count for lengths in trained for count in lengths.tokens.tolist()]
        plot_lengths(tokens, files["png"], trained[0].max_length)


def _show(request: Request, inspections: "Sequence[Inspection]", files: dict[str, Path]) -> None:
    from rich.console import Console

    from sartor.data.inspection.terminal import show

    console = Console(highlight=False, soft_wrap=False)
    num_rows = request.own.get("rows")
    for inspection in inspections:
        show(inspection, console, TERMINAL_ROWS if num_rows is None else num_rows)
        print()
    if request.idle:
        print(f"Options that have no part in this: {', '.join(request.idle)}.")
    for path in files.values():
        print(f"Written: {path}")

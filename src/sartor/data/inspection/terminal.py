"""An inspection for a terminal of any width, with colours or without.

What it keeps true: without colours (a pipe, NO_COLOR) marks say what colours would; nothing of a row's text can command
the terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from sartor.data.inspection.prepared import NEWLINE_MARK, describe, length_histogram, marked, visible
from sartor.data.inspection.record import Finding, Inspection, Lengths, Sample, Severity, Token, rows

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
TRAINED, UNTRAINED, CUT, SPECIAL = "bold green", "dim", "dim strike red", "reverse"
TRAINED_MARKS = ("⟦", "⟧")
"""What encloses trained text where there are no colours."""
CUT_MARKS = ("⟨cut:", "⟩")
SHOWN_CHARACTERS = 3_000
"""Of one sample: more would push the findings off the screen."""


def show(inspection: Inspection, console: Console, num_samples: int) -> None:
    """Print an inspection: counts, lengths, what would be cut, findings, and some rows."""
    _print(console, describe(inspection.summary))
    lengths = inspection.lengths
    if len(lengths.tokens):
        _heading(console, "Lengths in tokens, before anything is cut")
        _print(console, length_histogram(lengths.tokens, min(console.width, 100), max_length=lengths.max_length))
        _heading(console, "What max_length would cut")
        console.print(_cuts(lengths))
        if lengths.suggestion is not None:
            _print(console, f"Suggested: --max_length {lengths.suggestion.max_length}: {lengths.suggestion.reason}")
    samples = inspection.samples[:num_samples]
    if samples:
        _heading(console, "Rows, token by token")
        console.print(_legend(has_colours(console)))
        for sample in samples:
            _show_sample(sample, console)
    if not inspection.searched:
        return  # a mixture: what is in its rows is told of its sources
    _heading(console, counts_of(inspection.findings))
    for finding in inspection.findings:
        _show_finding(finding, console)
    _print(console, inspection.searched, "dim")


def has_colours(console: Console) -> bool:
    """Whether colours can say what is trained."""
    return console.color_system is not None and not console.no_color


def _print(console: Console, text: str, style: str = "") -> None:
    """Text as it is: no markup, no highlighting."""
    from rich.text import Text

    console.print(Text(visible(text), style))


def _heading(console: Console, text: str) -> None:
    console.print()
    _print(console, text, "bold")


def _cuts(lengths: Lengths) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("max_length", "rows cut", "tokens lost", "trained tokens lost", "rows left untrained"):
        table.add_column(heading, justify="right")
    for cut in lengths.cuts:
        is_asked = cut.max_length == lengths.max_length
        table.add_row(
            f"{'> ' if is_asked else ''}{cut.max_length:,}",
            f"{cut.num_rows:,}",
            f"{cut.num_tokens:,}",
            lengths.targets_lost(cut),
            f"{cut.num_emptied:,}",
            style="bold" if is_asked else "",
        )
    return table


def counts_of(findings: Sequence[Finding]) -> str:
    """`Findings: 1 error, 2 warnings`."""
    counts = Counter(finding.severity for finding in findings)
    parts = [rows(counts[one], one.value, f"{one.value}s") for one in Severity if counts[one]]
    return f"Findings: {', '.join(parts)}" if parts else "Findings: none"


def _show_finding(finding: Finding, console: Console) -> None:
    from rich.padding import Padding
    from rich.text import Text

    head = Text(f"{finding.severity.value}: ", STYLES[finding.severity])
    if finding.count:
        head.append(f"{rows(finding.count)}: ", "bold")
    head.append(visible(finding.message), "not bold")
    console.print(head)
    lines = [f"{sight.where}{': ' if sight.excerpt else ''}{sight.excerpt}" for sight in finding.first]
    if finding.count > len(lines) > 0:
        lines.append(f"… and {rows(finding.count - len(lines), 'other', 'others')}")
    for line in lines:
        console.print(Padding(Text(visible(line), "dim"), (0, 0, 0, 4)))
    if finding.advice:
        console.print(Padding(Text(f"→ {finding.advice}"), (0, 0, 0, 2)))


def _legend(in_colour: bool) -> Text:
    from rich.text import Text

    if not in_colour:
        return Text(
            f"{TRAINED_MARKS[0]}trained{TRAINED_MARKS[1]}, not trained, {CUT_MARKS[0]}cut off{CUT_MARKS[1]}, "
            f"{NEWLINE_MARK} end of line"
        )
    parts = [("trained", TRAINED), ("  ", ""), ("not trained", UNTRAINED), ("  ", ""), ("cut off", CUT), ("  ", "")]
    return Text.assemble(*parts, ("special token", SPECIAL), f"  {NEWLINE_MARK} end of line")


def _show_sample(sample: Sample, console: Console) -> None:
    from rich.text import Text

    said = f" · {', '.join(sample.findings)}" if sample.findings else ""
    console.print()
    _print(
        console,
        f"── {sample.where} · {rows(sample.num_tokens, 'token', 'tokens')}, {sample.num_targets:,} trained{said}",
        "bold",
    )
    tokens, left = _beginning(sample.tokens)
    console.print(coloured(tokens) if has_colours(console) else Text(plain(tokens)))
    left += sample.num_tokens - len(sample.tokens)
    if left:
        _print(console, f"… {rows(left, 'more token', 'more tokens')}: --html FILE shows more", "dim")


def _beginning(tokens: Sequence[Token]) -> tuple[Sequence[Token], int]:
    """The first tokens, up to so many characters; how many are left out."""
    characters = 0
    for number, token in enumerate(tokens):
        characters += len(token.text)
        if characters > SHOWN_CHARACTERS:
            return tokens[:number], len(tokens) - number
    return tokens, 0


def _kinds(tokens: Sequence[Token]) -> Iterator[tuple[tuple[bool, bool, bool], str]]:
    """((is cut, is trained, is special), text) of neighbouring tokens of one kind."""
    for kind, group in groupby(tokens, lambda token: (token.is_cut, token.is_target, token.is_special)):
        yield kind, "".join(token.text for token in group)


def coloured(tokens: Sequence[Token]) -> Text:
    """The text with colours: trained tokens bright, others dim, special tokens on a ground."""
    from rich.text import Text

    text = Text()
    for (is_cut, is_target, is_special), content in _kinds(tokens):
        style = CUT if is_cut else TRAINED if is_target else UNTRAINED
        text.append(marked(content), f"{style} {SPECIAL}" if is_special else style)
    return text


def plain(tokens: Sequence[Token]) -> str:
    """The text without colours: what is trained in ⟦ ⟧, what is cut off in ⟨cut: ⟩."""
    pieces: list[str] = []
    for (is_cut, is_target), group in groupby(tokens, lambda token: (token.is_cut, token.is_target)):
        before, after = CUT_MARKS if is_cut else TRAINED_MARKS if is_target else ("", "")
        pieces.append(f"{before}{marked(''.join(token.text for token in group))}{after}")
    return "".join(pieces).replace(f"{CUT_MARKS[1]}{CUT_MARKS[0]}", "")

"""A terminal picture from a real run: runs a command in a pseudo-terminal and draws its screen as SVG.

    python -m benchmarks.picture docs/demo.svg -- sartor demo --no-chat
    python -m benchmarks.picture docs/train.svg --rows 30 -- sartor train --model ... --data ...

Needs `pyte` (a terminal emulator), which the `dev` extra installs.
"""

from __future__ import annotations

import argparse
import os
import pty
import select
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

COLOURS = {
    "black": "#1e1e1e",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#e5c07b",
    "blue": "#61afef",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
    "white": "#d8d8d8",
    "default": "#d8d8d8",
}
CELL_WIDTH, CELL_HEIGHT, MARGIN = 8.4, 18, 14
BACKGROUND = "#1e1e1e"
NO_BREAK_SPACE = "\u00a0"  # viewers collapse runs of ordinary ones
FONTS = "ui-monospace, SFMono-Regular, Menlo, DejaVu Sans Mono, monospace"


def record(command: Sequence[str], columns: int, history: int = 4000) -> list[list[tuple[str, str, bool]]]:
    """Run a command to its end in a terminal; every line that was on its screen, as (character, colour, bold)."""
    import fcntl
    import termios

    import pyte

    screen = pyte.Screen(columns, history)  # tall enough that nothing scrolls away
    stream = pyte.ByteStream(screen)
    child, descriptor = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS=str(columns), LINES="50")
        os.execvp(command[0], list(command))
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    while True:
        ready, _, _ = select.select([descriptor], [], [], 600)
        if not ready:
            raise SystemExit("the command printed nothing for ten minutes")
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # the terminal is closed when the command ends
            break
        if not data:
            break
        stream.data_loader(data)
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise SystemExit(f"the command failed: {os.waitstatus_to_exitcode(status)}")
    lines = []
    for row in range(history):
        cells = [screen.buffer[row][column] for column in range(columns)]
        lines.append([(cell.data, cell.fg, cell.bold) for cell in cells])
    while lines and not any(character.strip() for character, _, _ in lines[-1]):
        lines.pop()
    return lines


def draw(lines: Sequence[Sequence[tuple[str, str, bool]]], title: str) -> str:
    """SVG of lines of cells."""
    columns = max(len(line) for line in lines)
    width = columns * CELL_WIDTH + 2 * MARGIN
    height = (len(lines) + 1) * CELL_HEIGHT + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{_escaped(title)}">',
        f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>',
        f'<text x="{MARGIN}" y="{MARGIN + 12}" font-family="{FONTS}" font-size="13" fill="#8a8a8a">'
        f"$ {_escaped(title)}</text>",
        f'<g font-family="{FONTS}" font-size="14" style="white-space: pre">',
    ]
    for number, line in enumerate(lines, 2):
        y = MARGIN + number * CELL_HEIGHT - 4
        for start, text, colour, bold in _runs(line):
            weight = ' font-weight="bold"' if bold else ""
            parts.append(
                f'<text x="{MARGIN + start * CELL_WIDTH:.1f}" y="{y}" fill="{_colour(colour)}"{weight} '
                f'textLength="{len(text) * CELL_WIDTH:.1f}">{_escaped(text).replace(" ", NO_BREAK_SPACE)}</text>'
            )
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def _runs(line: Sequence[tuple[str, str, bool]]) -> list[tuple[int, str, str, bool]]:
    """Neighbouring cells of one style, without what is blank at both ends."""
    runs: list[tuple[int, str, str, bool]] = []
    for column, (character, colour, bold) in enumerate(line):
        if runs and runs[-1][2:] == (colour, bold):
            start, text, *_ = runs[-1]
            runs[-1] = (start, text + (character or ""), colour, bold)
        else:
            runs.append((column, character or "", colour, bold))
    return [
        (start + len(text) - len(text.lstrip()), text.strip(), colour, bold)
        for start, text, colour, bold in runs
        if text.strip()
    ]


def _colour(name: str) -> str:
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name.lower()):
        return f"#{name}"
    return COLOURS.get(name.removeprefix("bright"), COLOURS["default"])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def main() -> int:
    """Run, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("svg", type=Path)
    parser.add_argument("--columns", type=int, default=110)
    parser.add_argument("--rows", type=int, help="keep only the last rows")
    parser.add_argument("--title", help="the command that is shown (default: the one that is run)")
    parser.add_argument("command", nargs="+", help="after --")
    arguments = parser.parse_args()
    lines = record(arguments.command, arguments.columns)
    if arguments.rows:
        lines = lines[-arguments.rows :]
    arguments.svg.write_text(draw(lines, arguments.title or " ".join(arguments.command)), encoding="utf-8")
    print(f"{arguments.svg}: {len(lines)} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How amounts, lists and other libraries' errors read within a sentence of ours."""

from collections.abc import Sequence


def amount(num_bytes: float, digits: int = 2) -> str:
    """Bytes in GB, or in MB where they are few: "1.25 GB", "12.50 MB"."""
    return f"{num_bytes / 1e9:.{digits}f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.{digits}f} MB"


def listed(names: Sequence[object], at_most: int = 8) -> str:
    """The first few with commas between them, and how many more there are."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(map(str, names[:at_most])) + more


def first_line(error: BaseException) -> str:
    """The first line of a library's many-lined message, or the error's class where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()


def one_line(error: BaseException) -> str:
    """The whole message in one line."""
    return " ".join(str(error).split())

"""Text in columns, for the eyes."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *rows)
    )


def size(count: int) -> str:
    """Bytes."""
    scaled, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if scaled < 999.5 or unit == "TB":
            break
        scaled /= 1000
    return f"{scaled:.0f} {unit}" if unit == "B" or scaled >= 99.95 else f"{scaled:.1f} {unit}"

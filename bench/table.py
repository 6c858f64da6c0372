"""Tables that read well in a terminal and are Markdown."""

from collections.abc import Sequence

Cell = str | int | float


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = "") -> None:
    lines = [list(columns), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    print(f"\n**{title}**\n")
    for at, line in enumerate(lines):
        cells = (
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        print("| " + " | ".join(cells) + " |")
        if at == 0:
            rule = ("-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths))
            print("| " + " | ".join(rule) + " |")
    if note:
        print(f"\n{note}")
    print(flush=True)


def _text(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"
    return str(cell)


def mib(size: int) -> float:
    return size / (1 << 20)


def quantile(values: Sequence[float], q: float) -> float:
    """The nearest-rank quantile."""
    ordered = sorted(values)
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)] if ordered else float("nan")

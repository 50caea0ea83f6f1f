"""A table as a value: lines of text for terminals and logs, cells for HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_BOLD = ' style="font-weight:bold"'


def page(text: str, *elements: str) -> str:
    """Lines of text, escaped, above HTML elements: how a notebook shows a result."""
    return f"<div><pre>{escape(text)}</pre>{''.join(elements)}</div>"


@dataclass(frozen=True)
class Table:
    """Words in rows and columns.

    Attributes:
        head: names of the columns.
        rows: as many words each.
        left: columns of words, which begin at the left edge; numbers end at the right one.
        strong: rows to emphasize.

    >>> table = Table(("", "model", ""), [("bytes", "32 B", "the same")], left=(0, 2))
    >>> table.lines()
    ['       model', 'bytes   32 B  the same']
    >>> table.html()[:48]
    '<table><thead><tr><th style="text-align:left"></'
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0,)
    strong: Sequence[int] = ()

    def lines(self) -> list[str]:
        """As text, the head first; columns as wide as their longest word."""
        whole = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
        return [
            "  ".join(
                word.ljust(width) if i in self.left else word.rjust(width)
                for i, (word, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in whole
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def html(self) -> str:
        """As an HTML element, with all words escaped."""
        head = self._cells("th", self.head)
        rows = "".join(
            f"<tr{_BOLD if i in self.strong else ''}>{self._cells('td', row)}</tr>"
            for i, row in enumerate(self.rows)
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def _cells(self, tag: str, words: Sequence[str]) -> str:
        return "".join(
            f'<{tag} style="text-align:{"left" if i in self.left else "right"}">'
            f"{escape(word)}</{tag}>"
            for i, word in enumerate(words)
        )

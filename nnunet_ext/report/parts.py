"""The parts that a page is made of, and how numbers are written on it."""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from matplotlib.figure import Figure
from tqdm import tqdm

from nnunet_ext.report.viewer import Viewer

Subject = TypeVar("Subject")
MISSING = "\N{EN DASH}"
_DPI = 144  # one and a half pixels of the file for a CSS pixel: sharp on dense screens and in print


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column names the row. Columns after the first `words` hold numbers.

    `links`: first cell -> the title or name of what it links to, on the page.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: int = 1
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A figure as PNG, its width on the page in CSS pixels, its caption, and the text for those who do not see it.

    `is_scan`: grey values that must stay what they are, where the page is dark. `name`: what links to it say, and
    `see` the title of the section that is linked below.
    """

    png: bytes
    width: int
    caption: str
    alt: str
    is_scan: bool = False
    name: str = ""
    see: str = ""

    @classmethod
    def of(cls, figure: Figure, caption: str, alt: str, **how: Any) -> "Picture":
        """Draws the figure, in its natural size; `how` are further fields."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
        return cls(buffer.getvalue(), round(96 * figure.get_figwidth()), caption, alt, **how)

    @property
    def data(self) -> str:
        """The PNG as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = field(default_factory=list)
    viewer: Viewer | None = None


def draw_sections(makers: Sequence[Callable[[Subject], Section | None]], subject: Subject) -> list[Section]:
    """What the makers make of the subject, without what is not there; shows its progress."""
    made = [maker(subject) for maker in tqdm(makers, desc="Drawing", unit="section", leave=False, disable=None)]
    return [section for section in made if section is not None]


def number(value: float | None, digits: int = 4) -> str:
    """With fixed decimals; a dash where there is none."""
    return MISSING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def significant(value: float) -> str:
    """Three significant digits, never in exponents: 0.00739, 1.24, 1,065."""
    if value == 0 or math.isnan(value):
        return number(value, 0)
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def percent(share: float, digits: int = 0) -> str:
    """0.4 -> "40 %"."""
    return f"{100 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """In two units: "3 h 12 min", "4 min 5 s", "12.3 s"."""
    if math.isnan(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def counted(n: int, what: str) -> str:
    """The number and its noun: 1 case, 2,000 cases."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def times(sizes: Any) -> str:
    """[16, 32, 32] -> "16 x 32 x 32" with the right sign; fractions to three digits."""
    if not isinstance(sizes, (list, tuple)) or not all(isinstance(size, (int, float)) for size in sizes):
        return "not recorded"
    return " \N{MULTIPLICATION SIGN} ".join(f"{size:.4g}" for size in sizes)

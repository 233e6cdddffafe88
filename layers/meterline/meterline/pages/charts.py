"""The daily chart as SVG, drawn by pygal.

pygal is plain Python: no script, no font and no image goes to the browser, so the page's policy can
forbid all three, and the chart is there before anything else is. Its look is the page's stylesheet,
which knows light and dark; what pygal adds for scripts and for styles of its own is taken out.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from xml.etree import ElementTree

from meterline.pages.formats import format_quantity, format_short_day, format_unit
from meterline.services.show_usage import DayUsage

_SVG = "http://www.w3.org/2000/svg"
_FOR_SCRIPTS = frozenset({"defs", "desc", "title", "style", "script"})
_OVERLAYS = frozenset({"plot overlay", "plot text-overlay", "plot tooltip-overlay", "titles"})
ElementTree.register_namespace("", _SVG)


def draw_days(
    days: Sequence[DayUsage], line: Decimal | None, unit: str, *, narrow: bool = False
) -> str:
    """Bars of the days, and a horizontal `line` where there is one, as an `<svg>` element."""
    # Here and not above: most pages of this process are drawn after the first one is out.
    import pygal

    top = max([float(day.quantity) for day in days] + [float(line or 0), 1.0])
    step = _choose_step(top / (3 if narrow else 4))
    marks: list[Any] = [step * place for place in range(int(top / step) + 2)]
    labels = [
        {"value": mark, "label": format_quantity(Decimal(str(round(mark, 3))))} for mark in marks
    ]
    if line is not None:
        labels.append({"value": float(line), "label": ""})
    chart = pygal.Bar(
        width=360 if narrow else 860,
        height=220 if narrow else 240,
        margin=4,
        margin_top=10,
        margin_left=4 + 7 * max(len(label["label"]) for label in labels),
        show_legend=False,
        js=[],
        css=[],
        spacing=2,
        rounded_bars=1,
        x_labels_major_every=7 if narrow else 3,
        show_minor_x_labels=False,
        range=(0, marks[-1]),
        print_values=False,
        truncate_label=-1,
    )
    chart.x_labels = [format_short_day(day.day) for day in days]
    chart.y_labels = labels
    # With none named, pygal would choose some: a height that no label has.
    chart.y_labels_major = [float(line) if line is not None else -1.0]
    chart.add("usage", [float(day.quantity) for day in days])
    root: ElementTree.Element = chart.render_tree()
    _strip(root)
    for bar, day in zip(_find_bars(root), days, strict=True):
        told = f"{format_short_day(day.day)}: {format_quantity(day.quantity)}"
        ElementTree.SubElement(
            bar, "title"
        ).text = f"{told} {format_unit(day.quantity, unit)}, {day.events:,} events"
    root.attrib.pop("id", None)
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    return ElementTree.tostring(root, encoding="unicode")


def _choose_step(about: float) -> float:
    """A round number of that size: 1, 2 or 5 times a power of ten."""
    size = 1.0
    while size * 10 <= about:
        size *= 10
    while size > about:
        size /= 10
    return next((size * factor for factor in (1, 2, 5) if size * factor >= about), size * 10)


def _strip(element: ElementTree.Element) -> None:
    for child in list(element):
        name = child.tag.rpartition("}")[2] if isinstance(child.tag, str) else "comment"
        if name in _FOR_SCRIPTS or name == "comment" or child.get("class") in _OVERLAYS:
            element.remove(child)
        else:
            child.attrib.pop("style", None)
            _strip(child)


def _find_bars(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [each for each in root.iter() if each.get("class") == "bar"]

"""Pieces of HTML. Whatever comes from a file passes `text` before it stands in the page."""

import html
from collections.abc import Iterable, Sequence


class Markup(str):
    """HTML that is ready to stand in the page; any other string is escaped."""

    __slots__ = ()


def text(value: object) -> Markup:
    """A value as HTML: escaped, unless it is markup already."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def join(pieces: Iterable[object], between: str = "") -> Markup:
    return Markup(between.join(text(piece) for piece in pieces))


def element(name: str, *content: object, **attributes: object) -> Markup:
    """``<name attributes>content</name>``; ``class_`` stands for ``class``, and attributes that are
    None are left out.
    """
    given = {
        key.rstrip("_").replace("_", "-"): value
        for key, value in attributes.items()
        if value is not None
    }
    opening = name + "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    return Markup(f"<{opening}>{join(content)}</{name}>")


def paragraph(*content: object, class_: str | None = None) -> Markup:
    return element("p", *content, class_=class_)


def bullets(items: Iterable[object], class_: str | None = None) -> Markup:
    return element("ul", *(element("li", item) for item in items), class_=class_)


def table(
    headings: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: str,
    words: int = 1,
    class_: str = "",
    titled: bool = True,
) -> Markup:
    """A table that scrolls sideways where the page is narrow.

    Args:
        caption: what the table holds; read out by screen readers.
        words: the number of leading columns with words in them; the others are aligned as numbers.
        titled: whether the caption also stands above the table.
    """
    head = element(
        "tr",
        *(
            element("th", heading, scope="col", class_="w" if i < words else None)
            for i, heading in enumerate(headings)
        ),
    )
    body = (element("tr", *(_cell(cell, i, words) for i, cell in enumerate(row))) for row in rows)
    whole = element("table", element("thead", head), element("tbody", *body), class_=class_ or None)
    return join(
        [paragraph(caption, class_="caption") if titled else "", scrolling(whole, label=caption)]
    )


def scrolling(content: object, *, label: str, class_: str = "") -> Markup:
    """What may be wider than the page; it can be reached and scrolled with the keyboard."""
    return element(
        "div",
        content,
        class_=f"scroll {class_}".strip(),
        tabindex="0",
        role="region",
        aria_label=label,
    )


def _cell(content: object, column: int, words: int) -> Markup:
    if column == 0:
        return element("th", content, scope="row", class_="w" if words else None)
    if isinstance(content, Markup) and content.startswith("<td"):
        return content
    return element("td", content, class_="w" if column < words else None)


def folding(summary: str, *content: object) -> Markup:
    return element("details", element("summary", summary), *content)


def panels(figures: Iterable[object], *, widest: int) -> Markup:
    """Figures side by side, as many as fit."""
    shown = list(figures)
    return (
        element("div", *shown, class_="panels", style=f"--panel: {widest}px")
        if shown
        else Markup("")
    )


def figure(drawing: Markup, caption: object = "") -> Markup:
    return element("figure", drawing, element("figcaption", caption) if caption else "")


def section(anchor: str, heading: str, *content: object) -> Markup:
    """A part of the page that the list of contents leads to."""
    return element("section", element("h2", heading, id=anchor), *content)

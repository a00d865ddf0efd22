"""The report's pictures: retrieval examples, stored views, captions side by side."""

from mobileclip.reports.examples import Captions, Hit, Query, Sheet
from mobileclip.reports.html_elements import Markup, element, join
from mobileclip.reports.text import SHORT_NAMES


def retrieval_section(text_queries: list[Query], picture_queries: list[Query]) -> Markup:
    """Cards of both directions; empty without queries."""
    if not text_queries:
        return Markup("")
    note = "Queries are drawn by seed, not chosen. Right answers are framed and marked; a rank is that of the best one."
    pictures = join(
        element("h3", "Image to text"), element("div", [_picture_card(q) for q in picture_queries], class_="cards")
    )
    return join(
        element("p", note, class_="note"),
        element("h3", "Text to image"),
        element("div", [_text_card(query) for query in text_queries], class_="cards"),
        pictures if picture_queries else None,
    )


def views_section(sheets: list[Sheet]) -> Markup:
    """Originals with their stored views."""
    if not sheets:
        return Markup("")
    note = (
        "Training pictures with the augmentations stored for them, replayed from their parameters at the student's "
        "input size. Teachers were asked about exactly these pixels' views, once."
    )
    rows = [
        element(
            "div",
            element("figure", _thumb(sheet.picture, sheet.text), element("figcaption", sheet.text)),
            element("div", [_thumb(v, f"view {i + 1}") for i, v in enumerate(sheet.views)], class_="views"),
            class_="sheet-row",
        )
        for sheet in sheets
    ]
    return join(element("p", note, class_="note"), element("div", rows, class_="panel"))


def captions_section(captions: list[Captions]) -> Markup:
    """Original captions beside those of each caption column."""
    if not captions:
        return Markup("")
    note = "Training pictures with their own captions beside the synthetic ones, drawn by seed."
    rows = []
    for row in captions:
        lists = [_texts("Original", row.original), *(_texts(f"Synthetic, {n}", t) for n, t in row.synthetic.items())]
        text = row.original[0]
        rows.append(
            element("div", _thumb(row.picture, text), element("div", lists, class_="columns"), class_="caption-row")
        )
    return join(element("p", note, class_="note"), element("div", rows, class_="panel"))


def _text_card(query: Query) -> Markup:
    rows = [
        element(
            "div",
            _rank_line(query, name),
            element("ul", [_picture_hit(h) for h in hits], class_="thumbs"),
            class_="answer",
        )
        for name, hits in query.answers.items()
    ]
    return element("article", element("h4", f"“{query.text}”"), rows, class_="card")


def _picture_card(query: Query) -> Markup:
    lists = [
        element(
            "div", _rank_line(query, name), element("ol", [_text_hit(h) for h in hits], class_="texts"), class_="answer"
        )
        for name, hits in query.answers.items()
    ]
    head = element("div", _thumb(query.picture, query.text), element("h4", f"“{query.text}”"), class_="picture-query")
    return element("article", head, element("div", lists, class_="columns"), class_="card")


def _rank_line(query: Query, name: str) -> Markup:
    return element("p", element("b", SHORT_NAMES[name]), element("span", f"rank {query.ranks[name]:,}"))


def _picture_hit(hit: Hit) -> Markup:
    label = f"{hit.text} (right)" if hit.right else hit.text
    image = element("img", src=hit.picture, alt=label, title=label)
    return element("li", image, _check() if hit.right else None, class_="thumb right" if hit.right else "thumb")


def _text_hit(hit: Hit) -> Markup:
    return element(
        "li", element("span", hit.text), _check() if hit.right else None, class_="right" if hit.right else None
    )


def _thumb(picture: str, text: str) -> Markup:
    return element("div", element("img", src=picture, alt=text, title=text), class_="thumb")


def _texts(title: str, texts: list[str]) -> Markup:
    items = [element("li", text) for text in texts]
    return element("div", element("h4", title), element("ul", items, class_="texts"))


def _check() -> Markup:
    mark = [element("circle", cx=8, cy=8, r=8), element("path", d="M4.5 8.2l2.4 2.5 4.6-5.2")]
    return element("svg", mark, viewBox="0 0 16 16", class_="check", role="img", aria_label="right answer")

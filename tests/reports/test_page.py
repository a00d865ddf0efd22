"""The report as a reader meets it: in a browser, on a desk and on a phone, with data that wants to break it."""

import html
import json
import re
from html.parser import HTMLParser

import pytest

from mobileclip.reports.page import Report, render
from mobileclip.reports.text import delta_text, metric_label, range_text, value_text
from tests.evaluation import chromium, small_run


class Page(HTMLParser):
    """Elements, visible text, ids and links of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.ids, self.links, self.text, self._stack = [], [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.elements.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[key] for key in ("href", "src", "srcset", "action", "data") if values.get(key)]
        self._stack.append(tag)

    def handle_endtag(self, tag):
        while self._stack and self._stack.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self._stack:
            self.text += data


@pytest.fixture(scope="module")
def finished():
    return small_run.evaluated()[0]


@pytest.fixture(scope="module")
def report(finished):
    return finished / "report.html"


@pytest.fixture(scope="module")
def page(report):
    return Page(report.read_text())


def test_it_has_every_part(page):
    for title in (
        "Results", "Learning curves", "Retrieval examples", "Classes", "Stored views", "Captions",
        "Lineage and licenses", "How the numbers are made",
    ):  # fmt: skip
        assert title in page.text
    assert set(page.ids) >= {link[1:] for link in page.links if link.startswith("#")}
    assert page.elements.count("img") >= 3 * 2 * 5 + 3 + 6 * 4 + 8


def test_text_from_the_data_stays_text(page, report):
    assert "script" not in page.elements
    assert "<script" not in report.read_text()
    assert page.elements.count("title") - page.elements.count("g") == 1
    assert small_run.HOSTILE in page.text  # as caption, synthetic caption and license
    assert "猫" in page.text


def test_it_asks_for_nothing_outside(page, report):
    assert all(link.startswith(("#", "data:image/webp;base64,", "data:,")) for link in page.links)
    text = report.read_text()
    assert not re.search(r"url\((?!['\"]?data:)|@import|https?:", text)
    assert "default-src 'none'" in text
    assert len(text.encode()) < 3_000_000


def test_it_says_what_results_say(page, finished):
    results = json.loads((finished / "results.json").read_text())
    row = results["scopes"][0]["metrics"]["retrieval/mean/r5"]
    for text in (
        value_text("retrieval/mean/r5", row["student"]["value"]),
        range_text("retrieval/mean/r5", row["student"]),
        delta_text("retrieval/mean/r5", row["delta"]["value"]),
    ):
        assert text in page.text
    assert page.text.count("better") + page.text.count("worse") + page.text.count("no evidence") > 20


def test_a_browser_asks_the_network_for_nothing(report, tmp_path):
    asking = tmp_path / "asking.html"
    asking.write_text('<img src="http://example.invalid/a.png">')
    assert chromium.requests(asking, tmp_path) == ["http://example.invalid/a.png"]  # the test can see one
    assert chromium.requests(report, tmp_path) == []


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it(report, tmp_path, width):
    pixels, console = chromium.screenshot(report, tmp_path, width=width, height=3000)
    assert console == []
    assert pixels.shape == (3000, width, 3)
    bands = pixels.reshape(15, 200, width, 3).astype(float)
    assert (bands.std(axis=(1, 2)).max(axis=1) > 2).all()  # something in every band
    assert pixels[:, :4].mean() > 240  # light
    found = chromium.measure(report, tmp_path, width=width)
    assert found["scroll"] == found["client"]  # nothing sticks out to the side
    assert found["images"] == found["decoded"] > 50
    assert found["styled"] == 650
    assert found["scripts"] == 0


def test_a_browser_shows_it_dark(report, tmp_path):
    pixels, console = chromium.screenshot(report, tmp_path, width=1280, height=900, dark=True)
    assert console == []
    assert pixels[:, :4].mean() < 40
    assert pixels.max() > 200


def test_a_sandboxed_frame_shows_it(report, tmp_path):
    """As the Kubeflow UI does: an opaque origin, scripts allowed."""
    frame = tmp_path / "frame.html"
    source = html.escape(report.read_text(), quote=True)
    style = "border:0;width:900px;height:900px"
    frame.write_text(
        f'<body style="margin:0"><iframe sandbox="allow-scripts" style="{style}" srcdoc="{source}"></iframe>'
    )
    for _ in range(10):
        framed, console = chromium.screenshot(frame, tmp_path, width=900, height=900)
        assert console == []
        if framed.std() > 0:  # else the browser did not wait for the frame, which is another process's to paint
            break
    assert (framed.reshape(9, 100, 900, 3).astype(float).std(axis=(1, 2)).max(axis=1) > 2).all()


def test_a_page_of_little_is_still_a_page(finished):
    results = json.loads((finished / "results.json").read_text())
    results["scopes"] = results["scopes"][:1]
    results["classifications"] = {}
    facts = {"architecture": "a", "parameters": 10, "sha256": "0" * 64, "license": "MIT", "card": {}}
    dataset = {"digest": "0" * 64, "quarantined": 0, "scales": {}, "shards": [], "columns": [], "sources": []}
    text = render(Report(results, {"student": facts}, dataset, {}, "1"))
    assert "Stored views" not in text
    assert "Classes" not in text


@pytest.mark.parametrize(
    ("verdict", "words"), [("better", "is better"), ("worse", "is worse"), ("no evidence", "No evidence")]
)
def test_the_title_is_the_verdict(finished, verdict, words):
    results = json.loads((finished / "results.json").read_text())
    results["scopes"][0]["metrics"][results["headline"]]["delta"]["verdict"] = verdict
    facts = {"architecture": "a", "parameters": 10, "sha256": "0" * 64, "license": "MIT", "card": {}}
    dataset = {"digest": "0" * 64, "quarantined": 0, "scales": {}, "shards": [], "columns": [], "sources": []}
    text = render(Report(results, {"student": facts, "control": facts}, dataset, {}, "1"))
    assert words in re.search("<h1>(.*?)</h1>", text)[1]


def test_words_and_numbers():
    assert metric_label("retrieval/i2t/r10") == ("Retrieval, image to text", "Recall at 10")
    assert metric_label("zero_shot/group/top1") == ("Zero-shot, group", "Top-1 accuracy")
    assert delta_text("retrieval/i2t/r1", -0.0123) == "−1.2"
    assert delta_text("retrieval/i2t/r1", -0.0001) == "0.0"
    assert delta_text("retrieval/i2t/median_rank", 1234.0) == "+1,234"
    assert value_text("retrieval/i2t/median_rank", 1234.0) == "1,234"
    assert value_text("zero_shot/group/ece", None) == "–"

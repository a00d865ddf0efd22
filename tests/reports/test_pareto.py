"""Which students no other one beats, and what the page shows."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobileclip.errors import ConfigError, DataError
from mobileclip.kubeflow import sweep
from mobileclip.reports import pareto
from mobileclip.reports.pareto import Candidate


def student(name, score, size, metric="retrieval/mean/r1"):
    return Candidate(name, "tiny-mci", metric, score, score - 0.05, score + 0.05, size)


THREE = [student("small", 0.5, 10), student("middle", 0.4, 20), student("large", 0.7, 30)]


def test_a_student_that_is_worse_and_larger_is_beaten():
    assert [c.name for c in pareto.front(THREE)] == ["small", "large"]


def test_equal_students_do_not_beat_each_other():
    twins = [student("one", 0.5, 10), student("two", 0.5, 10)]
    assert [c.name for c in pareto.front(twins)] == ["one", "two"]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=12))
def test_the_front_is_what_its_definition_says(points):
    students = [student(str(index), score / 20, size) for index, (score, size) in enumerate(points)]
    best = pareto.front(students)
    assert best
    for one in students:
        better = [
            o
            for o in students
            if (o.score > one.score and o.size <= one.size) or (o.score >= one.score and o.size < one.size)
        ]
        assert (one in best) == (not better)
    sizes = [c.size for c in best]
    assert sizes == sorted(sizes)


def test_scores_of_different_metrics_are_not_compared():
    with pytest.raises(DataError, match=r"^pareto: got scores of 2 metrics"):
        pareto.check([*THREE, student("other", 0.5, 5, "zero_shot/top1")])
    with pytest.raises(DataError, match=r"^pareto: got scores of 0 metrics"):
        pareto.check([])


class Page(HTMLParser):
    """Text of table cells, and the number of dots."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.dots, self.links, self.inside = [], 0, [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "td"
        self.dots += tag == "circle"
        self.links += [value for key, value in attrs if key in {"src", "href"}]

    def handle_data(self, data):
        if self.inside:
            self.cells.append(data)
            self.inside = False


def test_the_page_shows_every_student_and_asks_for_nothing():
    page = Page(pareto.render([*THREE, replace(student("<b>", 0.1, 99), model="a&b")]))
    assert page.dots == 4
    assert page.links == []
    rows = [page.cells[i : i + 5] for i in range(0, len(page.cells), 5)]
    assert [row[0] for row in rows] == ["large", "small", "middle", "<b>"]
    assert rows[0] == ["large", "tiny-mci", "70.00", "65.0 to 75.0", "0.0"]


def results(folder, score):
    numbers = {"student": {"value": score, "low": score, "high": score}}
    scope = {"name": "", "metrics": {"retrieval/mean/r1": numbers}}
    programs = [
        {"tower": tower, "bytes": size} for tower, size in (("image", 300), ("image", 100), ("text", 50), ("text", 70))
    ]
    for name, file, content in (
        ("evaluate", "results.json", {"headline": "retrieval/mean/r1", "scopes": [scope]}),
        ("export", "contract.json", {"model": "tiny-mci", "programs": programs}),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / file).write_text(json.dumps(content))
    return str(folder / "evaluate"), str(folder / "export")


def test_a_sweep_is_read_from_its_folders(tmp_path):
    pairs = [results(tmp_path / "sweep" / name, score) for name, score in (("one", 0.2), ("two", 0.3))]
    numbers = sweep.compare(str(tmp_path), [p[0] for p in pairs], [p[1] for p in reversed(pairs)])
    assert numbers == {"one/score": 0.2, "one/bytes": 150.0, "two/score": 0.3, "two/bytes": 150.0}
    written = json.loads((tmp_path / "sweep/pareto.json").read_text())
    assert written["front"] == ["two"]
    assert "two" in (tmp_path / "sweep/pareto.html").read_text()
    with pytest.raises(ConfigError, match=r"^students: scored \['one'\], exported"):
        sweep.compare(str(tmp_path), [pairs[0][0]], [pairs[1][1]])


def test_results_that_lack_a_number_are_named(tmp_path):
    evaluation, programs = results(tmp_path / "sweep/one", 0.2)
    (tmp_path / "sweep/one/evaluate/results.json").write_text(json.dumps({"headline": "x", "scopes": []}))
    with pytest.raises(DataError, match=r"^pareto: the results of 'one' lack"):
        pareto.read("one", evaluation, programs)

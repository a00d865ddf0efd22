"""Attributions: each thing once, every license stated, nothing that a hostile ledger could turn into markup."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobileclip.errors import DataError, IntegrityError
from mobileclip.lineage import attribution, licenses
from mobileclip.manifest import Attribution, Column, Manifest, Source

ANN = Attribution(
    kind="data", name="ann", license="CC-BY-4.0", attribution="Drawings by Ann.", url="https://ann.example/"
)
BOB = Attribution(kind="captioner", name="bob", license="MIT AND X-1")
EVE = Attribution(kind="weights", name="eve", license="apple-amlr")


def _content(**fields):
    column = Column(name="first.views", kind="embedding", spec={}, spec_sha256="d" * 64, parts={}, **fields)
    source = Source(
        name="ann", license="CC-BY-4.0", attribution="Drawings by Ann.", url="https://ann.example/", samples=3
    )
    return Manifest(shards=[], columns=[column], sources=[source])


def test_sources_become_attributions():
    assert attribution.of_data(_content()) == [ANN]


def test_a_column_tells_its_model_and_what_that_was_made_from():
    content = _content(license="MIT", attributions=[BOB, EVE])
    assert attribution.of_column(content, "first.views", "teacher") == [BOB, EVE]


def test_a_column_that_records_none_is_not_dropped():
    assert attribution.of_column(_content(), "first.views", "teacher") == [
        Attribution(kind="teacher", name="first", license="unknown")
    ]
    with pytest.raises(DataError, match="no column 'second"):
        attribution.of_column(_content(), "second.views", "teacher")


def test_each_thing_once_in_the_order_it_came():
    assert attribution.merged([ANN, BOB], [EVE, ANN], [], [BOB]) == [ANN, BOB, EVE]


def test_every_license_is_inherited_once():
    assert attribution.license_of([EVE, BOB, ANN, BOB]) == "CC-BY-4.0 AND MIT AND X-1 AND apple-amlr"
    assert attribution.license_of([Attribution(kind="data", name="x"), ANN]) == "CC-BY-4.0 AND unknown"
    assert attribution.license_of([]) == "unknown"


def test_a_card_keeps_them():
    card = {"model": "m", **attribution.to_card([ANN, EVE])}
    assert attribution.of_card(card) == [ANN, EVE]
    assert attribution.of_card({"model": "m"}) == []


@pytest.mark.parametrize("entry", [5, {"kind": "data"}, ["x"], [{"kind": "art", "name": "x"}], [{"kind": "data"}]])
def test_a_damaged_card_gets_a_sentence(entry):
    with pytest.raises(IntegrityError, match=r"^model\.json: 'attributions' is no list of kind, name.*\.$"):
        attribution.of_card({"attributions": entry})


def test_markdown_names_authors_licenses_and_where_to_read_them():
    text = attribution.markdown([ANN, BOB, EVE])
    assert "- **ann**, license `CC-BY-4.0`. Drawings by Ann. <https://ann.example/>" in text
    assert "- `CC-BY-4.0`: <https://creativecommons.org/licenses/by/4.0/>" in text
    assert "- `X-1`: its text is not known here; its terms count as unknown" in text
    # Apple's agreement wants this sentence repeated, word by word.
    assert (
        "Apple Machine Learning Research Model is licensed under the Apple Machine Learning Research Model License "
        "Agreement." in text
    )
    assert attribution.markdown([]) == ""


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(
    st.lists(st.tuples(st.sampled_from(["data", "teacher", "weights"]), _TEXT, _TEXT, _TEXT), min_size=1, max_size=5)
)
def test_nothing_is_dropped_and_no_ledger_writes_markup(rows):
    found = [Attribution(kind=k, name=n, license=license_, attribution=a) for k, n, license_, a in rows]
    lines = attribution.markdown(found).splitlines()
    items = [line for line in lines if line.startswith("- **")]
    assert len(items) == len(found)
    told = {line for line in lines if line.startswith("- `")}
    assert len(told) == len({name for one in found for name in licenses.names(one.license)})
    assert {line for line in lines if line and not line.startswith("- ")} <= {
        "### Pictures and captions", "### Models that were distilled",
        "### Pretrained weights that it, or a model above, started from",
        "### Licenses",
    }  # fmt: skip
    for line in items:  # what is open to markup is escaped or in a code span
        assert not re.search(r"(?<!\\)[<\[|]", re.sub(r"(?<!\\)`[^`]*`", "", line))

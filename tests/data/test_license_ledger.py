"""The ledger: which entries become sources, with how many samples."""

import json

import pytest

from mobileclip.data.license_ledger import Ledger, of_tower
from mobileclip.errors import DataError

ENTRIES = [
    {"set": "names", "role": "captions", "license": "MIT", "attribution": "by N", "version": "1"},
    {"set": "ann", "role": "artist", "license": "CC-BY-4.0", "attribution": "by Ann"},
    {"name": "bob", "license": "CC0-1.0"},
    {"set": "nobody", "license": "GPL-3.0"},
    {"set": "weights", "role": "tower", "license": "Apache-2.0"},
]


def _sources(folder, samples):
    ledger = Ledger(folder)
    for sample in samples:
        ledger.count({"license": "own", **sample})
    return [(s.name, s.license, s.attribution, s.samples) for s in ledger.sources()]


def test_samples_are_counted_for_the_entry_they_name_and_others_by_license(tmp_path):
    (tmp_path / "LICENSES.json").write_text(json.dumps(ENTRIES))
    samples = [{"artist": "ann"}, {"source": "ann"}, {"set": "bob"}, {"artist": "eve", "license": "X"}, {"artist": 5}]
    assert _sources(tmp_path, samples) == [
        ("names", "MIT", "by N", 5), ("ann", "CC-BY-4.0", "by Ann", 2), ("bob", "CC0-1.0", "", 1),
        ("pictures and captions", "X", "", 1), ("pictures and captions", "own", "", 1),
    ]  # fmt: skip


def test_without_a_ledger_licenses_are_counted(tmp_path):
    assert _sources(tmp_path, [{}, {"license": "A"}, {}]) == [
        ("pictures and captions", "A", "", 1), ("pictures and captions", "own", "", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "{}x", "5", "[5]", '[{"set": "a"}]', '[{"license": "MIT"}]', '{"a": 1}', '[{"set": "a", "license": 5}]',
        '[{"set": "a", "license": "M", "attribution": 1}]',
        '[{"set": "a", "license": "M", "url": "a.example"}]', '[{"set": "a", "license": "M", "homepage": 1}]',
    ],
)  # fmt: skip
def test_a_damaged_ledger_gets_a_sentence(tmp_path, text):
    (tmp_path / "LICENSES.json").write_text(text)
    with pytest.raises(DataError, match=r"^prepare\.source: 'LICENSES\.json' is no list of objects with name and"):
        Ledger(tmp_path)


def test_addresses_are_kept_under_either_name(tmp_path):
    rows = [
        {"set": "ann", "license": "MIT", "homepage": "https://ann.example"},
        {"set": "bob", "license": "MIT", "homepage": "https://old.example", "url": "https://bob.example/x"},
    ]
    (tmp_path / "LICENSES.json").write_text(json.dumps(rows))
    ledger = Ledger(tmp_path)
    for name in ("ann", "bob"):
        ledger.count({"source": name, "license": "own"})
    assert [s.url for s in ledger.sources()] == ["https://ann.example", "https://bob.example/x"]


TOWERS = [
    {
        "file": "a.safetensors",
        "name": "net",
        "license": "Apache-2.0",
        "attribution": "by N",
        "url": "https://n.example",
    },
    {"file": "text/", "name": "words", "license": "MIT"},
]


def test_a_tower_is_found_by_its_file(tmp_path):
    (tmp_path / "LICENSES.json").write_text(json.dumps(TOWERS))
    net = of_tower(str(tmp_path), "a.safetensors", key="k")
    assert (net.kind, net.name, net.license, net.attribution, net.url) == (
        "weights", "net", "Apache-2.0", "by N", "https://n.example",
    )  # fmt: skip
    assert of_tower(str(tmp_path), "text", key="k").name == "words"


def test_a_tower_that_no_entry_names_is_unknown_and_not_dropped(tmp_path):
    assert of_tower(str(tmp_path), "b.safetensors", key="k").license == "unknown"
    (tmp_path / "LICENSES.json").write_text(json.dumps(TOWERS))
    assert of_tower(str(tmp_path), "b.safetensors", key="k").name == "b.safetensors"
    (tmp_path / "LICENSES.json").write_text("{}x")
    with pytest.raises(DataError, match=r"^train_teacher\.towers: 'LICENSES\.json' is no list"):
        of_tower(str(tmp_path), "b.safetensors", key="train_teacher.towers")

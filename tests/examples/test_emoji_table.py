"""Concepts, captions, splits and tables of the emoji data, on tiny literals made here."""

import json
import math

import pytest

from examples.emoji.captions import alt_texts, descriptions, load_wording, noun_phrase
from examples.emoji.catalog import Concept, code_point_key, parse_concepts
from examples.emoji.packages import load_packages
from examples.emoji.splits import group_concepts, neutral_key, part_of, shared_pictures
from examples.emoji.table import caption_rows, count_sets, license_rows, write_tables
from mobileclip.errors import DataError

WORDING = load_wording()


def a_concept(name: str = "grinning face", *, key: str = "1f600", tags: tuple[str, ...] = (), **changes) -> Concept:
    fields = {"group_key": "smileys-emotion", "group": "smileys & emotion"}
    fields |= {"subgroup_key": "face-smiling", "subgroup": "smiling"}
    return Concept(key=key, name=name, tags=tags, **(fields | changes))


class TestCatalog:
    @pytest.mark.parametrize(
        ("sequence", "key"),
        [
            ("1F600", "1f600"),
            ("0023-FE0F-20E3", "23-20e3"),
            ("23-20e3", "23-20e3"),
            ("1F468-200D-2764-FE0F-200D-1F468", "1f468-200d-2764-200d-1f468"),
        ],
    )
    def test_code_point_key(self, sequence, key):
        assert code_point_key(sequence) == key

    @pytest.mark.parametrize("sequence", ["", "smile", "1f600-", "fe0f"])
    def test_code_point_key__bad(self, sequence):
        with pytest.raises(DataError, match="Code points"):
            code_point_key(sequence)

    def test_parse_concepts_leaves_out_flags_components_and_letters(self):
        rows = [
            {"label": "grinning face", "hexcode": "1F600", "tags": ["grin"], "group": 0, "subgroup": 0},
            {"label": "light skin tone", "hexcode": "1F3FB", "group": 2, "subgroup": 32},
            {"label": "flag: Wales", "hexcode": "1F3F4", "group": 9, "subgroup": 99},
            {"label": "regional indicator A", "hexcode": "1F1E6"},
        ]
        keys = {0: "smileys-emotion", 2: "component", 9: "flags"}
        groups = {"groups": {str(k): v for k, v in keys.items()}, "subgroups": {"0": "face-smiling"}}
        messages = {
            "groups": [{"key": "smileys-emotion", "message": "smileys & emotion"}],
            "subgroups": [{"key": "face-smiling", "message": "smiling"}],
        }
        assert parse_concepts(rows, messages=messages, groups=groups) == [a_concept(tags=("grin",))]
        with pytest.raises(DataError, match="same code points 1f600"):
            parse_concepts([rows[0], rows[0]], messages=messages, groups=groups)


class TestCaptions:
    def test_alt_texts(self):
        concept = a_concept(tags=("face", "grin", "happy", "teeth", "grinning face"))
        assert alt_texts(concept) == [
            "grinning face",
            "grinning face, face, grin, happy, teeth",
            "face, grin",
            "happy, teeth",
        ]
        assert alt_texts(a_concept(tags=("ship", "tool"))) == [
            "grinning face",
            "grinning face, ship, tool",
            "ship, tool",
        ]
        assert alt_texts(a_concept(tags=("grinning face",))) == ["grinning face"]

    def test_descriptions(self):
        assert descriptions(a_concept(), wording=WORDING) == [
            "a picture of a grinning face, a smiling face among smileys and emotion",
            "a drawing that shows a grinning face, a smiling face",
            "a grinning face, drawn as an emoji from smileys and emotion",
        ]

    def test_descriptions__name_that_is_its_own_category(self):
        heart = a_concept("hair", subgroup_key="person", group_key="people-body")
        person = a_concept("person", subgroup_key="person", group_key="people-body")
        assert len(descriptions(heart, wording=WORDING)) == 3
        assert descriptions(person, wording=WORDING) == [
            "a picture of a person among people and body",
            "a person, drawn as an emoji",
        ]

    def test_descriptions__category_without_wording(self):
        with pytest.raises(DataError, match="Category 'face-new' has no wording"):
            descriptions(a_concept(subgroup_key="face-new"), wording=WORDING)

    @pytest.mark.parametrize(
        ("name", "phrase"),
        [
            ("angry face", "an angry face"),
            ("unicorn", "a unicorn"),
            ("SOS button", "an SOS button"),
            ("clinking glasses", "clinking glasses"),
            ("face with tears of joy", "a face with tears of joy"),
            ("face holding back tears", "a face holding back tears"),
            ("trolleybus", "a trolleybus"),
            ("compass", "a compass"),
            ("cooked rice", "cooked rice"),
            ("Statue of Liberty", "the Statue of Liberty"),
            ("no entry", "a no entry sign"),
            ("seven o’clock", "a clock that shows seven o’clock"),
            ("man with veil", "a man with a veil"),
            ("men with bunny ears", "men with bunny ears"),
            ("mobile phone with arrow", "a mobile phone with an arrow"),
            ("man: bald", "a bald man"),
            ("person: blond hair", "a person with blond hair"),
            ("woman: beard", "a woman with a beard"),
            ("person walking: facing right", "a person walking facing right"),
            ("family: man, boy, boy", "a family of a man and two boys"),
            ("family: man, woman, girl, boy", "a family of a man, a woman, a girl and a boy"),
            ("couple with heart: woman, woman", "a couple with a heart, two women"),
            ("keycap: #", "the keycap #"),
            ("A button (blood type)", "an A button for a blood type"),
        ],
    )
    def test_noun_phrase(self, name, phrase):
        assert noun_phrase(a_concept(name), wording=WORDING) == phrase


class TestSplits:
    def test_neutral_key(self):
        cook, walking = "1f9d1-200d-1f373", "1f6b6"
        assert {neutral_key(key) for key in (cook, "1f468-200d-1f373", "1f469-200d-1f373")} == {cook}
        assert {neutral_key(key) for key in (walking, "1f6b6-200d-2642-200d-27a1", "1f6b6-200d-27a1")} == {walking}
        assert neutral_key("1f600") == "1f600"

    def test_shared_pictures_and_variants_end_in_one_group(self):
        keys = ["1f468-200d-1f373", "1f9d1-200d-1f373", "1f408", "1f431", "1f63a", "1f600"]
        groups = group_concepts(
            [a_concept(key=key) for key in keys],
            pictures={"p": {"1f408", "1f431"}, "q": {"1f431", "1f63a"}, "r": set()},
        )
        assert groups["1f468-200d-1f373"] == groups["1f9d1-200d-1f373"]
        assert groups["1f408"] == groups["1f431"] == groups["1f63a"] == "1f408"
        assert len(set(groups.values())) == 3

    def test_part_of_has_the_declared_shares(self):
        parts = [part_of(f"{number:x}") for number in range(20_000)]
        for part, share in (("train", 0.70), ("validation", 0.15), ("unseen", 0.15)):
            tolerance = 4 * math.sqrt(share * (1 - share) / len(parts))
            assert parts.count(part) / len(parts) == pytest.approx(share, abs=tolerance)

    def test_shared_pictures(self, tmp_path):
        for name, content in {"1f408": b"same", "1f431": b"same", "1f600": b"other"}.items():
            (tmp_path / f"{name}.png").write_bytes(content)
        assert sorted(map(sorted, shared_pictures([tmp_path]).values())) == [["1f408", "1f431"], ["1f600"]]


CONCEPTS = [a_concept(f"face {number}", key=f"{number:x}", tags=("face",)) for number in range(1, 401)]
ARTISTS = [package for package in load_packages() if package.role == "artist"]


class TestTable:
    def rows(self):
        keys = {concept.key for concept in CONCEPTS}
        drawn = {str(artist.picture_set): keys for artist in ARTISTS} | {"emojione": set(sorted(keys)[:100])}
        groups = group_concepts(CONCEPTS, pictures={"same": {"1", "2", "3"}})
        return caption_rows(CONCEPTS, artists=ARTISTS, drawn=drawn, groups=groups), drawn

    def test_concepts_and_groups_are_disjoint(self):
        rows, _ = self.rows()
        for field in ("concept", "group_key"):
            train = {row[field] for row in rows if row["split"] == "train"}
            validation = {row[field] for row in rows if row["split"] == "validation"}
            seen = {row[field] for row in rows if row["split"] == "test" and row["seen"]}
            unseen = {row[field] for row in rows if row["split"] == "test" and not row["seen"]}
            assert train
            assert seen == train
            assert not validation & (train | seen | unseen)
            assert not unseen & train
        assert sum(count["concepts"] for name, count in count_sets(rows).items() if name != "test_seen") == 400

    def test_the_evaluation_artist_is_never_trained_on(self):
        rows, _ = self.rows()
        assert {row["artist"] for row in rows if row["split"] == "test"} == {"fluent3d"}
        assert {row["artist"] for row in rows if row["split"] != "test"} == {"twemoji", "openmoji", "noto", "emojione"}
        assert len({row["image"] for row in rows}) == len(rows)

    def test_half_of_the_training_concepts_are_described(self):
        rows, _ = self.rows()
        described = {row["concept"]: "descriptions" in row for row in rows if row["split"] == "train"}
        assert 0.4 < sum(described.values()) / len(described) < 0.6
        assert all("descriptions" in row for row in rows if row["split"] != "train")
        for row in rows:
            assert row["captions"][0] == row["name"]
            if row["split"] == "train":
                assert ("descriptions" in row) == described[row["concept"]]

    def test_license_ledger(self):
        rows, drawn = self.rows()
        ledger = {entry["set"]: entry for entry in license_rows(load_packages(), drawn=drawn, rows=rows)}
        assert ledger["openmoji"]["license"] == "CC-BY-SA-4.0"
        assert ledger["emojione"]["pictures"] == 100
        assert sum(entry.get("pictures_used", 0) for entry in ledger.values()) == len(rows)
        assert "pictures" not in ledger["emojibase-data"]

    def test_write_tables(self, tmp_path):
        concept = a_concept()
        for artist in ARTISTS:
            folder = tmp_path / "images" / str(artist.picture_set)
            folder.mkdir(parents=True)
            (folder / "1f600.png").write_bytes(str(artist.picture_set).encode())
        write_tables(tmp_path, concepts=[concept], packages=load_packages())
        lines = (tmp_path / "captions.jsonl").read_text(encoding="utf-8").splitlines()
        assert lines
        assert all((tmp_path / json.loads(line)["image"]).is_file() for line in lines)
        assert len(json.loads((tmp_path / "LICENSES.json").read_bytes())) == 8

    def test_artist_without_pictures(self, tmp_path):
        with pytest.raises(DataError, match="has no PNG pictures"):
            write_tables(tmp_path, concepts=[a_concept()], packages=load_packages())

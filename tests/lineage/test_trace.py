"""The chain from a file back to the data, on folders that real stages left."""

import atexit
import dataclasses
import functools
import io
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from mobileclip import config, storage
from mobileclip.errors import DataError
from mobileclip.lineage import attribution, view
from mobileclip.lineage import record as records
from mobileclip.lineage.licenses import Terms, Use, binding, classify, not_commercial
from mobileclip.lineage.trace import copy_records
from mobileclip.manifest import Attribution
from mobileclip.models import zoo
from mobileclip.promotion.model_card import model_card
from mobileclip.promotion.registered import trace
from tests import students


@pytest.fixture
def chain(tmp_path, monkeypatch) -> Path:
    """prepare, two teachers, filter and a distilled student, side by side."""
    monkeypatch.chdir(tmp_path)  # no registry of the working folder answers
    monkeypatch.setenv("MOBILECLIP_TRACKING", "off")
    return Path(shutil.copytree(_made_once(), tmp_path / "out"))


@functools.cache
def _made_once() -> Path:
    root = Path(tempfile.mkdtemp(prefix="lineage-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    data = students.prepare(root, count=16, license_="CC-BY-4.0")
    students.distill(root, data, good=False)
    for name, license_ in (("a", "MIT"), ("b", "apple-amlr")):
        zoo.save(
            str(root / "train_teacher" / name), zoo.create("tiny-mci"), license=license_, card={"model": "tiny-mci"}
        )
    students.finish("train_teacher", config.TrainTeacher(), root / "train_teacher", {}, data=data)
    (root / "filter").mkdir()
    students.finish("filter", config.Filter(), root / "filter", {}, data=data, teachers=root / "train_teacher")
    return root


class TestTrace:
    def test_goes_from_a_file_back_to_the_pictures(self, chain):
        found = trace(str(chain / "distill" / "student" / "open_clip_model.safetensors"), roots=[str(chain / "raw")])
        assert [node.stage for node in found.nodes] == ["distill", "prepare"]
        assert found.problems == []
        assert found.nodes[1].digest == records.input_digest(str(chain / "prepare"))
        ((stage, name, digest, uri),) = found.outside
        assert (stage, name, uri) == ("prepare", "source", str(chain / "raw"))
        assert digest == records.input_digest(str(chain / "raw"))

    def test_looks_for_raw_pictures_in_no_folder_of_runs(self, chain, monkeypatch):
        """It may hold all that was ever run, and files that are no business of this user."""
        digest, asked = records.input_digest, []
        monkeypatch.setattr(records, "input_digest", lambda uri: asked.append(Path(uri).resolve()) or digest(uri))
        roots = [str(chain / "distill" / ".."), str(chain.parent), str(chain / "raw")]
        found = trace(str(chain / "distill"), roots=roots)
        assert found.outside[0][3] == str(chain / "raw")
        assert (chain / "raw").resolve() in asked
        assert not {chain.resolve(), chain.parent.resolve()} & set(asked)

    @pytest.mark.parametrize("text", ["", "no json", "[]", '{"files": []}', '{"files": {"a/b": 1}}'])
    def test_other_files_of_that_name_nearby_are_passed_over(self, chain, text):
        (chain / "other").mkdir()
        (chain / "other" / "record.json").write_text(text)
        found = trace(str(chain / "distill"), roots=[str(chain / "raw")])
        assert [node.stage for node in found.nodes] == ["distill", "prepare"]
        assert found.problems == []

    def test_does_not_depend_on_where_the_folders_are(self, chain, tmp_path):
        before = view.as_dict(trace(str(chain / "filter")))
        shutil.move(chain, tmp_path / "elsewhere")
        assert view.as_dict(trace(str(tmp_path / "elsewhere" / "filter"))) == before

    @pytest.mark.parametrize(
        ("path", "says"),
        [
            ("prepare/train-00000.tar", "prepare: 'train-00000.tar' has another sha256"),
            ("prepare/config.json", "prepare: 'config.json' has another sha256"),
            ("distill/student/model.json", "distill: 'student/model.json' has another sha256"),
        ],
    )
    def test_finds_a_changed_file(self, chain, path, says):
        original = (chain / path).read_bytes()
        (chain / path).write_bytes(original.replace(b"0", b"1", 1))
        assert any(problem.startswith(says) for problem in trace(str(chain / "distill")).problems)

    def test_finds_a_missing_file_and_a_missing_stage(self, chain):
        (chain / "distill" / "student" / "model.json").unlink()
        shutil.rmtree(chain / "prepare")
        problems = trace(str(chain / "distill")).problems
        assert problems[0] == "distill: 'student/model.json' is missing"
        assert problems[1].startswith("distill: input 'data'")
        assert problems[1].endswith("was not found")

    def test_a_changed_record_breaks_the_chain(self, chain):
        record = json.loads((chain / "prepare" / "record.json").read_text())
        (chain / "prepare" / "record.json").write_text(json.dumps({**record, "version": "9"}))
        assert "was not found" in trace(str(chain / "distill")).problems[0]

    def test_a_file_that_no_stage_wrote_shows(self, chain):
        (chain / "distill" / "note.txt").write_text("hello")
        assert trace(str(chain / "distill" / "note.txt")).problems == ["distill: 'note.txt' is not in the record"]
        with pytest.raises(DataError, match=r"no record\.json at or above"):
            trace(str(chain / "raw" / "captions.jsonl"))

    def test_finds_a_stage_that_was_given_a_subfolder(self, chain):
        (chain / "again").mkdir()
        students.finish(
            "evaluate",
            config.Evaluate(),
            chain / "again",
            {},
            data=chain / "prepare",
            student=chain / "distill" / "student",
        )
        found = trace(str(chain / "again"))
        assert sorted(node.stage for node in found.nodes) == ["distill", "evaluate", "prepare"]
        assert found.problems == []

    @pytest.mark.parametrize("place", ["runs/second/distill", "runs/first/sweep/wide/distill"])
    def test_finds_the_stages_of_another_run_and_of_a_sweep(self, chain, tmp_path, place):
        """A student of another run's dataset, and one of a sweep's below the run that made it."""
        root = tmp_path / "project"
        shutil.copytree(chain / "prepare", root / "runs" / "first" / "prepare")
        shutil.copytree(chain / "distill", root / place)
        found = trace(str(root / place))
        assert [node.stage for node in found.nodes] == ["distill", "prepare"]
        assert found.problems == []

    def test_a_folder_that_may_not_be_read_is_passed_over(self, chain, monkeypatch):
        (chain / "secret").mkdir()
        look = storage.exists

        def exists(uri):
            if "secret" in str(uri):
                raise PermissionError(13, "Permission denied")
            return look(uri)

        monkeypatch.setattr(storage, "exists", exists)
        assert trace(str(chain / "distill")).problems == []

    def test_copies_of_the_records_keep_chain_and_licenses(self, chain, tmp_path):
        whole = trace(str(chain / "filter"))
        copy_records(whole, tmp_path / "kept" / "records")
        shutil.rmtree(chain)
        kept = tmp_path / "kept" / "records"
        (start,) = kept.glob("filter-*")
        found = trace(str(start))
        assert found.problems == []
        assert [node.digest for node in found.nodes] == [node.digest for node in whole.nodes]
        assert found.uses == whole.uses
        assert sum(node.absent for node in found.nodes) > 0


class TestLicenses:
    def test_the_most_restrictive_of_the_chain_binds_with_its_reason(self, chain):
        found = trace(str(chain / "filter"))
        terms, reasons = binding(found.uses)
        assert terms == Terms.RESEARCH_ONLY
        assert [(use.stage, use.what, use.license) for use in reasons] == [
            ("train_teacher", "weights of b", "apple-amlr")
        ]
        assert {use.license for use in found.uses} == {"CC-BY-4.0", "MIT", "apple-amlr"}
        assert not_commercial(found.uses) == reasons

    @pytest.mark.parametrize(
        ("name", "terms"),
        [
            ("Apache-2.0", Terms.PERMISSIVE),
            ("MIT", Terms.PERMISSIVE),
            ("BSD-3-Clause", Terms.PERMISSIVE),
            ("CC0-1.0", Terms.PERMISSIVE),
            ("CC-BY-4.0", Terms.PERMISSIVE),
            ("OFL-1.1", Terms.PERMISSIVE),
            ("CC-BY-SA-4.0", Terms.SHARE_ALIKE),
            ("GPL-3.0-or-later", Terms.SHARE_ALIKE),
            ("LGPL-2.1", Terms.SHARE_ALIKE),
            ("CC-BY-NC-4.0", Terms.RESEARCH_ONLY),
            ("CC-BY-NC-SA-4.0", Terms.RESEARCH_ONLY),
            ("CC-BY-ND-4.0", Terms.RESEARCH_ONLY),
            ("apple-amlr", Terms.RESEARCH_ONLY),
            ("research only", Terms.RESEARCH_ONLY),
            ("unknown", Terms.UNKNOWN),
            ("", Terms.UNKNOWN),
            ("Vendor EULA", Terms.UNKNOWN),
            ("MITRE-internal", Terms.UNKNOWN),
            ("Apache-2.0 AND CC-BY-SA-4.0", Terms.SHARE_ALIKE),
            ("MIT AND apple-amlr AND CC0-1.0", Terms.RESEARCH_ONLY),
            ("GPL-2.0 OR MIT", Terms.PERMISSIVE),
            ("Apache-2.0 WITH LLVM-exception", Terms.PERMISSIVE),
        ],
    )
    def test_classes(self, name, terms):
        assert classify(name) == terms

    def test_nothing_recorded_is_unknown(self):
        assert binding([]) == (Terms.UNKNOWN, [])
        assert not_commercial([Use("a", "b", "?")]) == [Use("a", "b", "?")]


def test_prints_every_stage_digest_and_problem(chain):
    (chain / "distill" / "student" / "model.json").unlink()
    console = Console(width=200, file=io.StringIO())
    console.print(view.render(trace(str(chain / "distill"), roots=[str(chain / "raw")])))
    text = console.file.getvalue()
    for part in ("prepare", "distill", records.input_digest(str(chain / "prepare"))[:16], "is missing", "CC-BY-4.0"):
        assert part in text


def test_names_stay_what_they_are_and_things_under_one_license_share_a_row(chain):
    found = trace(str(chain / "distill"))
    things = [Use("reinforce", f"column locked.{name} by trained:locked:x", "MIT") for name in ("views", "coca")]
    console = Console(width=200, file=io.StringIO())
    console.print(view.render(dataclasses.replace(found, nodes=[dataclasses.replace(found.nodes[0], uses=things)])))
    rows = [line for line in console.file.getvalue().splitlines() if "locked" in line]
    assert "column locked.views by trained:locked:x, column locked.coca by trained:locked:x" in rows[0]
    assert rows[1:] == ["License: permissive, because of column locked.views by trained:locked:x (MIT) and 1 more"]


def test_model_card_tells_evaluation_gates_licenses_and_lineage(chain):
    card = model_card(
        trace(str(chain / "filter")),
        name="student",
        card={"model": "tiny-mci", "sha256": "ab", "teachers": {"a": "x", "b": "y"}, "license": "MIT AND apple-amlr"}
        | attribution.to_card([Attribution(kind="data", name="ann", license="CC-BY-4.0", attribution="by Ann")]),
        metrics={"samples": 8, "student/retrieval/i2t/r1": 0.5, "student/retrieval/i2t/r1/low": 0.4}
        | {"student/retrieval/i2t/r1/high": 0.6, "student/zero_shot/g/top1": 0.25},
        contract={},
        verdicts=[{"gate": "champion", "got": "a|b", "want": "c", "passed": False, "reason": "."}],
    )
    for part in (
        "| Teachers | a, b |",
        "| retrieval/i2t/r1 | 0.500 [0.400, 0.600] | – |",
        "| zero_shot/g/top1 | 0.250 |",
        "| champion | a\\|b | c | **no** |",
        "**research-only**, because of weights of b (apple-amlr)",
        "| filter | `",
        "- **ann**, license `CC-BY-4.0`. by Ann\n",
    ):
        assert part in card

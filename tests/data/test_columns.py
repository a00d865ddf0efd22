"""Columns: same bytes twice, a commit protocol that survives rivals and kill -9, and refusal of foreign rows."""

import json
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobileclip import manifest, storage
from mobileclip.data.columns import (
    ColumnPlan,
    ColumnReader,
    build_columns,
    collect,
    commit,
    committed,
    pack_texts,
    read_captions,
    unpack_texts,
)
from mobileclip.errors import IntegrityError, MobileClipError
from mobileclip.manifest import Manifest, Shard, uids_digest
from tests import s3

PLAN = ColumnPlan("numbers", "selection", {"seed": 1})


def shards(count: int = 6) -> list[Shard]:
    return [
        Shard(
            name=f"train-{i:05d}", split="train", path=f"{i}.tar", samples=4, bytes=1, sha256=f"{i:064x}",
            uids_sha256=uids_digest([f"{i}-{row}" for row in range(4)]),
        )
        for i in range(count)
    ]  # fmt: skip


def compute(shard: Shard, _missing) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(int(shard.sha256, 16))
    return {"numbers": {"b": torch.rand(4, 3, generator=generator), "a": torch.arange(4)}}


def _files(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def _published(folder) -> dict[str, bytes]:
    return {name: data for name, data in _files(folder).items() if not name.endswith(".tmp")}


@pytest.fixture
def clean(tmp_path) -> dict[str, bytes]:
    """Files of one undisturbed run."""
    build_columns(str(tmp_path / "clean"), [PLAN], shards(), compute)
    return _files(tmp_path / "clean")


def test_the_same_rows_give_the_same_bytes(tmp_path, clean):
    build_columns(str(tmp_path / "again"), [PLAN], shards()[::-1], compute)
    assert _files(tmp_path / "again") == clean
    assert len(clean) == 12
    content = collect(str(tmp_path / "again"), [PLAN], shards(), Manifest(shards=shards()))
    for shard in shards():
        part = content.column("numbers").parts[shard.name]
        data = clean[part.path]
        assert (part.bytes, part.samples) == (len(data), 4)
        assert part.sha256.startswith(part.path.removesuffix(".safetensors").rpartition("-")[2])
        assert storage.read_bytes(tmp_path / "again" / part.path, sha256=part.sha256) == data
        reader = ColumnReader(str(tmp_path / "again"), content.column("numbers"), shard)
        expected = compute(shard, [])["numbers"]
        assert sorted(reader.keys()) == ["a", "b"]
        assert torch.equal(reader.all("b"), expected["b"])
        assert torch.equal(reader.row("b", 2), expected["b"][2])
        assert torch.equal(reader.rows("b", 1, 3), expected["b"][1:3])
        assert torch.equal(pickle.loads(pickle.dumps(reader)).all("b"), expected["b"])


def test_committed_shards_are_not_computed_again(tmp_path):
    out, asked = str(tmp_path), []

    def counting(shard, missing):
        asked.append((shard.name, missing))
        return compute(shard, missing) | {"more": {"x": torch.zeros(4)}}

    build_columns(out, [PLAN], shards(2), counting)
    build_columns(out, [PLAN], shards(3), counting)
    more = ColumnPlan("more", "selection", {})
    build_columns(out, [PLAN, more], shards(3), counting)
    names = [s.name for s in shards(3)]
    assert asked == [(name, ["numbers"]) for name in names] + [(name, ["more"]) for name in names]


def test_a_changed_spec_or_shard_never_meets_old_results(tmp_path):
    out = str(tmp_path)
    build_columns(out, [PLAN], shards(1), compute)
    before = _files(tmp_path)
    changed = ColumnPlan("numbers", "selection", {"seed": 2})
    rebuilt = shards(1)[0].model_copy(update={"sha256": "f" * 64})
    assert committed(out, PLAN, shards(1)[0]) is not None
    assert committed(out, changed, shards(1)[0]) is None
    assert committed(out, PLAN, rebuilt) is None
    build_columns(out, [changed], shards(1), lambda *_: {"numbers": {"a": torch.ones(4)}})
    assert before.items() <= _files(tmp_path).items()
    content = Manifest(shards=shards(1))
    for plan, key in ((PLAN, "b"), (changed, "a")):
        column = collect(out, [plan], shards(1), content).column("numbers")
        assert key in ColumnReader(out, column, shards(1)[0]).keys()  # noqa: SIM118 - a reader is no mapping


def test_groups_cover_every_shard_once_and_a_merge_names_what_is_missing(tmp_path, clean):
    out, asked = str(tmp_path / "groups"), []

    def counting(shard, missing):
        asked.append(shard.name)
        return compute(shard, missing)

    for group in (2, 0):
        build_columns(out, [PLAN], shards(), counting, group=group, num_groups=3)
    with pytest.raises(
        MobileClipError,
        match=r"^column 'numbers': shard 'train-00001' is not there yet, run its group before the merge\.$",
    ):
        collect(out, [PLAN], shards(), Manifest(shards=shards()))
    build_columns(out, [PLAN], shards(), counting, group=1, num_groups=3)
    assert sorted(asked) == [s.name for s in shards()]
    assert _files(tmp_path / "groups") == clean


def test_the_first_writer_is_adopted(tmp_path):
    """Two workers whose bytes differ (another machine rounds otherwise): both go on with the first one's."""
    out, shard = str(tmp_path), shards(1)[0]
    first = commit(out, PLAN, shard, {"a": torch.zeros(4)})
    second = commit(out, PLAN, shard, {"a": torch.ones(4)})
    assert second == first == committed(out, PLAN, shard)


def test_a_data_file_without_its_record_is_taken_over(tmp_path, clean):
    """What a worker leaves that dies between its two writes."""
    out = tmp_path / "broken"
    build_columns(str(out), [PLAN], shards(), compute)
    for record in list(out.rglob("*.json"))[:3]:
        record.unlink()
    (out / "numbers" / ".train-00000-x.safetensors.abc.tmp").write_bytes(b"half")
    build_columns(str(out), [PLAN], shards(), compute)
    assert _published(out) == clean


def _slow(shard: Shard, missing):
    time.sleep(0.01)
    return compute(shard, missing)


def _work(out: str) -> None:
    torch.set_num_threads(1)
    build_columns(out, [PLAN], shards(), _slow)


def _race(out: str) -> list[int | None]:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(out,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    return [worker.exitcode for worker in workers]


def test_two_racing_processes_give_the_bytes_of_one(tmp_path, clean):
    assert _race(str(tmp_path / "race")) == [0, 0]
    assert _files(tmp_path / "race") == clean


def test_two_racing_processes_on_s3(tmp_path, clean, monkeypatch):
    s3.use(monkeypatch)
    out = s3.bucket("columns-race") + "/x"
    storage.s3.connect.cache_clear()  # a forked client would share its sockets
    assert _race(out) == [0, 0]
    folder = storage.local_dir(out)
    assert _files(folder) == clean


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_minus_nine_at_any_moment(tmp_path, clean, workers):
    """Workers are killed again and again at odd moments; the last run ends with the same bytes."""
    out = tmp_path / "killed"
    context = multiprocessing.get_context("fork")
    for delay in (0.004, 0.013, 0.021, 0.034, 0.047):
        processes = [context.Process(target=_work, args=(str(out),)) for _ in range(workers)]
        for process in processes:
            process.start()
        time.sleep(delay)
        for process in processes:
            if process.pid and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert _published(out).items() <= clean.items()
    build_columns(str(out), [PLAN], shards(), compute)
    assert _published(out) == clean


def test_a_worker_that_dies_is_an_error_not_a_hole(tmp_path, monkeypatch):
    monkeypatch.setenv("MOBILECLIP_PROCESSES", "2")

    def dies(shard, missing):
        if shard.name == "train-00001":
            os._exit(7)
        return compute(shard, missing)

    with pytest.raises(MobileClipError, match=r"^parallel: a worker process died \(exit codes \[0, 7\]\)\.$"):
        build_columns(str(tmp_path), [PLAN], shards(2), dies)


def test_several_processes_give_the_bytes_of_one(tmp_path, clean, monkeypatch):
    monkeypatch.setenv("MOBILECLIP_PROCESSES", "3")
    build_columns(str(tmp_path / "many"), [PLAN], shards(), compute)
    assert _files(tmp_path / "many") == clean


class TestForeign:
    def test_rows_of_another_shard_are_refused(self, tmp_path):
        build_columns(str(tmp_path), [PLAN], shards(2), compute)
        column = collect(str(tmp_path), [PLAN], shards(2), Manifest(shards=shards(2))).column("numbers")
        first, second = shards(2)
        swapped = column.model_copy(update={"parts": {first.name: column.parts[second.name]}})
        with pytest.raises(
            IntegrityError,
            match=r"^column 'numbers': 'train-00001-.*' has rows of uids \w{12}, shard 'train-00000' has \w{12}\.$",
        ):
            ColumnReader(str(tmp_path), swapped, first)
        with pytest.raises(IntegrityError, match=r"^column 'numbers': has no rows for shard 'train-00001'\.$"):
            ColumnReader(str(tmp_path), swapped, second)

    @pytest.mark.parametrize("cut", [0, 5, 60, -1])
    def test_a_cut_file_is_refused_with_its_name(self, tmp_path, cut):
        build_columns(str(tmp_path), [PLAN], shards(1), compute)
        column = collect(str(tmp_path), [PLAN], shards(1), Manifest(shards=shards(1))).column("numbers")
        file = tmp_path / column.parts["train-00000"].path
        file.write_bytes(file.read_bytes()[:cut])
        with pytest.raises(IntegrityError, match=rf"^column file '{file.name}' is damaged: "):
            ColumnReader(str(tmp_path), column, shards(1)[0])

    def test_a_file_of_something_else_is_refused(self, tmp_path):
        from safetensors.torch import save_file

        build_columns(str(tmp_path), [PLAN], shards(1), compute)
        column = collect(str(tmp_path), [PLAN], shards(1), Manifest(shards=shards(1))).column("numbers")
        save_file({"b": torch.rand(4, 3)}, tmp_path / column.parts["train-00000"].path)
        with pytest.raises(IntegrityError, match="has rows of uids ,"):
            ColumnReader(str(tmp_path), column, shards(1)[0])


class TestTexts:
    @settings(max_examples=60, deadline=None)
    @given(
        rows=st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=4), min_size=4, max_size=4)
    )
    def test_any_strings_come_back(self, tmp_path_factory, rows):
        folder = str(tmp_path_factory.mktemp("texts"))
        plan = ColumnPlan("texts", "caption", {})
        shard = shards(1)[0]
        build_columns(folder, [plan], [shard], lambda *_: {"texts": pack_texts(rows)})
        column = collect(folder, [plan], [shard], Manifest(shards=[shard])).column("texts")
        assert read_captions(folder, column, shard) == rows
        reader = ColumnReader(folder, column, shard)
        assert [unpack_texts(reader, index) for index in (3, 1)] == [rows[3], rows[1]]

    def test_the_layout_is_what_it_says(self):
        packed = pack_texts([["é", ""], [], ["abc"]])
        assert bytes(packed["bytes"].tolist()).decode() == "éabc"
        assert packed["offsets"].tolist() == [0, 2, 2, 5]
        assert packed["counts"].tolist() == [0, 2, 2, 3]


def test_a_manifest_lists_all_that_was_collected(tmp_path):
    plan = ColumnPlan("numbers", "selection", {"seed": 1}, ["views"], "MIT")
    build_columns(str(tmp_path), [plan], shards(2), compute)
    content = collect(str(tmp_path), [plan], shards(2), Manifest(shards=shards(2)))
    manifest.write(str(tmp_path), content)
    column = json.loads((tmp_path / "manifest.json").read_text())["columns"][0]
    assert column["computed_on"] == ["views"]
    assert column["license"] == "MIT"
    assert column["spec_sha256"] == manifest.spec_digest({"seed": 1})
    assert list(column["parts"]) == ["train-00000", "train-00001"]

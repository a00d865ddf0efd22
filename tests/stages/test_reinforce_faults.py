"""reinforce among faults: it ends with one sentence or goes on, and a re-run gives the bytes of an undisturbed run."""

import random
import resource
import shutil
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from mobileclip import manifest, storage
from mobileclip.config import Reinforce, TeacherRef, Views
from mobileclip.data.columns import ColumnReader
from mobileclip.errors import DataError, IntegrityError, MobileClipError, StorageError
from mobileclip.stages import reinforce
from mobileclip.storage import s3
from mobileclip.tracking.protocol import LogTracker
from tests import s3 as server
from tests.faulty_s3 import FaultyS3

CONFIG = Reinforce(
    views=Views(num_views=2), teachers=[TeacherRef(name="first", model="trained:first")], batch_size=16, seed=3
)
Run = Callable[[str, str], Any]


@pytest.fixture(scope="module")
def run(tiny_teachers) -> Run:
    def run(out: str, data: str) -> dict[str, float]:
        return reinforce.run(CONFIG, out=out, tracker=LogTracker(), data=data, teachers=tiny_teachers)

    return run


@pytest.fixture(scope="module")
def clean(run, tiny_captioned, tmp_path_factory) -> dict[str, bytes]:
    """The column files of an undisturbed run."""
    out = str(tmp_path_factory.mktemp("clean"))
    run(out, tiny_captioned)
    return _columns(out)


def _columns(out: str) -> dict[str, bytes]:
    """Column files and their commit records; the manifest's paths depend on where the data lie."""
    folder = storage.local_dir(out)
    paths = [p for p in Path(folder).rglob("*") if p.is_file() and p.parent != Path(folder) and p.suffix != ".tmp"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


@pytest.fixture
def data(tiny_captioned, tmp_path) -> str:
    """A dataset of one's own to damage: shards and columns lie in the folder."""
    content = manifest.read(tiny_captioned)
    files = [shard.path for shard in content.shards]
    files += [part.path for column in content.columns for part in column.parts.values()]
    for file in files:
        target = tmp_path / "data" / file.lstrip("./")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(tiny_captioned) / file, target)
    text = (Path(tiny_captioned) / "manifest.json").read_text().replace('"../', '"')
    (tmp_path / "data" / "manifest.json").write_text(text)
    return str(tmp_path / "data")


def _file(data: str, shard: int) -> Path:
    return Path(data) / manifest.read(data).split("train")[shard].path


def test_a_missing_shard_stops_with_its_name_and_a_rerun_completes(run, clean, data, tmp_path):
    shard = _file(data, 1)
    shard.rename(tmp_path / "aside")
    with pytest.raises(DataError, match=rf"^data: no file '{shard}'\.$"):
        run(str(tmp_path / "out"), data)
    assert not (tmp_path / "out" / "manifest.json").exists()
    (tmp_path / "aside").rename(shard)
    run(str(tmp_path / "out"), data)
    assert _columns(str(tmp_path / "out")) == clean


def test_a_shard_cut_between_two_members_is_refused(run, clean, data, tmp_path):
    """Tar readers pass over such a cut in silence: the rest of the shard would be missing for good."""
    import tarfile

    shard = _file(data, 0)
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    shard.write_bytes(whole[: members[len(members) // 2].offset])
    with pytest.raises(DataError, match=r"^shard 'train-00000': '.*' has \d+ bytes, the manifest promises \d+; "):
        run(str(tmp_path / "out"), data)
    shard.write_bytes(whole)
    run(str(tmp_path / "out"), data)
    assert _columns(str(tmp_path / "out")) == clean


def test_a_picture_that_became_unreadable_is_named(run, clean, data, tmp_path):
    shard = _file(data, 0)
    whole = shard.read_bytes()
    shard.write_bytes(whole.replace(b"\x89PNG", b"\x89PNX", 1))
    vouched = manifest.read(data)
    first = vouched.split("train")[0]
    other = first.model_copy(update={"sha256": storage.digest_file(shard)})  # else its digest tells first
    manifest.write(data, vouched.model_copy(update={"shards": [other if s == first else s for s in vouched.shards]}))
    with pytest.raises(DataError, match=r"^shard 'train-00000': picture '\w{24}': image: cannot be decoded: "):
        run(str(tmp_path / "out"), data)
    shard.write_bytes(whole)
    manifest.write(data, vouched)
    run(str(tmp_path / "out"), data)
    assert _columns(str(tmp_path / "out")) == clean


def test_a_caption_column_of_another_shard_set_is_refused(run, clean, data, tmp_path):
    content = manifest.read(data)
    column = content.column("coca")
    first, second = (shard.name for shard in content.split("train"))
    swapped = {first: column.parts[second], second: column.parts[first]}
    manifest.write(data, content.with_column(column.model_copy(update={"parts": swapped})))
    with pytest.raises(IntegrityError, match=r"^column 'coca': 'train-00001-.*' has rows of uids \w{12}, shard "):
        run(str(tmp_path / "out"), data)
    manifest.write(data, content)
    run(str(tmp_path / "out"), data)
    assert _columns(str(tmp_path / "out")) == clean


def test_a_damaged_commit_record_is_named(run, clean, data, tmp_path):
    out = tmp_path / "out"
    run(str(out), data)
    record = next((out / "first.views").glob("train-00001.*.json"))
    record.write_text('{"path": ')
    with pytest.raises(
        IntegrityError, match=rf"^{record}: is no commit record, the file is damaged; delete it and run again\.$"
    ):
        run(str(out), data)
    record.unlink()
    run(str(out), data)
    assert _columns(str(out)) == clean


def test_a_lost_column_file_stops_the_merge(run, clean, data, tmp_path):
    out = tmp_path / "out"
    run(str(out), data)
    file = next((out / "first.views").glob("train-00001-*.safetensors"))
    whole = file.read_bytes()
    for damage in (file.unlink, lambda: file.write_bytes(whole[:-1])):
        damage()
        with pytest.raises(
            IntegrityError,
            match=rf"^column 'first\.views': '{file}' (is missing|has \d+ bytes, its record promises {len(whole)}); "
            r"delete it and its record '.*\.json' and run again\.$",
        ) as caught:
            run(str(out), data)
        file.unlink(missing_ok=True)
        Path(str(caught.value).split("record '")[1].split("'")[0]).unlink()
        run(str(out), data)
        assert _columns(str(out)) == clean


def _in_a_fork(work: Callable[[], None]) -> str:
    """The sentence of the error that `work` raises in a process of its own."""
    context = get_context("fork")
    queue = context.SimpleQueue()

    def body() -> None:
        try:
            work()
            queue.put("")
        except MobileClipError as error:
            queue.put(f"{type(error).__name__}: {error}")

    process = context.Process(target=body)
    process.start()
    process.join(120)
    assert process.exitcode == 0
    return queue.get()


def test_a_full_disk_stops_with_a_sentence_and_a_rerun_completes(run, clean, data, tmp_path):
    """A file-size limit is what a test can set without a disk of its own; the kernel refuses the write all the same."""
    out = str(tmp_path / "out")

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))  # views fit, embeddings do not
        run(out, data)

    sentence = _in_a_fork(work)
    assert sentence.startswith(f"{StorageError.__name__}: storage: cannot write '{out}/first.views/train-00000-")
    assert sentence.endswith("': File too large.")
    assert list((tmp_path / "out").rglob("*.tmp")) == []
    published = _columns(out)
    assert published.items() < clean.items()
    assert any(name.startswith("views/") for name in published)
    run(out, data)
    assert _columns(out) == clean


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    proxy = FaultyS3(server.endpoint())
    settings = {**server.environment(), "AWS_ENDPOINT_URL": proxy.endpoint, "MOBILECLIP_CACHE": str(tmp_path / "cache")}
    for name, value in (settings | {"MOBILECLIP_STORAGE_WAIT": "0.001"}).items():
        monkeypatch.setenv(name, value)
    s3.connect.cache_clear()
    yield proxy
    proxy.close()
    s3.connect.cache_clear()


def test_on_a_store_that_fails_all_the_time_the_bytes_are_the_same(run, clean, data, faulty):
    """A third of all requests fails, in every way a store or a line can fail; data and output both lie there."""
    base = server.bucket("reinforce-faults")
    for file in (p for p in Path(data).rglob("*") if p.is_file()):
        storage.write_bytes(storage.join(base, "data", file.relative_to(data).as_posix()), file.read_bytes())
    draws = random.Random(5)
    kinds = ("500", "503", "reset", "lost", "truncated", "cut", "flipped")
    faulty.seen.clear()
    faulty.plan = lambda method, *_: draws.choice(kinds) if draws.random() < 0.33 and method in {"GET", "PUT"} else ""
    out = storage.join(base, "out")
    run(out, storage.join(base, "data"))
    faulty.plan = lambda *_: ""
    assert len(faulty.seen) > 40
    assert _columns(out) == clean
    content = manifest.read(out)
    for shard in content.split("train"):
        ColumnReader(out, content.column("first.views"), shard)


def test_a_store_that_goes_down_half_way_is_one_sentence_and_a_rerun_completes(run, clean, data, faulty, monkeypatch):
    monkeypatch.setenv("MOBILECLIP_STORAGE_TRIES", "3")
    out = storage.join(server.bucket("reinforce-down"), "out")
    puts = []

    def plan(method: str, path: str, _number: int) -> str:
        puts.extend([path] * (method == "PUT"))
        return "503" if len(puts) > 5 else ""

    faulty.plan = plan
    with pytest.raises(StorageError, match=rf"^storage: \w+ '{out}/.*' failed 3 times, at last with 503 SlowDown; "):
        run(out, data)
    faulty.plan = lambda *_: ""
    published = _columns(out)
    assert len(published) == 5
    assert published.items() < clean.items()
    run(out, data)
    assert _columns(out) == clean

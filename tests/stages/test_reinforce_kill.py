"""reinforce killed with SIGKILL at twenty random moments while two workers write one output: the bytes of a clean run.

Workers are forked from this process, which has torch loaded already, so a start costs what the stage itself costs.
"""

import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mobileclip import manifest, storage
from mobileclip.config import Reinforce, TeacherRef, Views
from mobileclip.models.replay import verify
from mobileclip.stages import reinforce
from mobileclip.tracking.protocol import LogTracker
from tests import s3

pytestmark = pytest.mark.slow

KILLS = 20
FORK = multiprocessing.get_context("fork")
Run = Callable[[str], None]


@pytest.fixture(scope="module")
def run(tiny_data, tiny_teachers) -> Run:
    """The stage on four shards with two teachers, here or in a fork."""
    config = Reinforce(
        views=Views(num_views=2),
        teachers=[TeacherRef(name=name, model=f"trained:{name}") for name in ("first", "second")],
        captions=[],
        batch_size=16,
        seed=3,
        splits=["train", "validation", "test"],
    )

    def work(out: str) -> None:
        reinforce.run(config, out=out, tracker=LogTracker(), data=tiny_data, teachers=tiny_teachers)

    return work


@pytest.fixture(params=["local", "s3"])
def base(request, tmp_path, tiny_data, monkeypatch) -> str:
    """A folder or bucket for outputs."""
    if request.param == "local":
        return str(tmp_path / "outs")
    s3.use(monkeypatch, MOBILECLIP_CACHE=str(tmp_path / "cache"))
    return s3.bucket("reinforce-kill")


def _files(out: str) -> dict[str, bytes]:
    """What is published: a killed writer may leave a temporary file, which no reader looks at."""
    folder = storage.local_dir(out)
    paths = [p for p in Path(folder).rglob("*") if p.is_file() and p.suffix != ".tmp" and p.name != "timings.json"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def _wait(out: str, count: int, workers: list) -> None:
    """Until that many files are there, or no worker is left."""
    while any(worker.is_alive() for worker in workers) and len(storage.list_names(out)) < count:
        time.sleep(0.05)


def test_twenty_kills_of_two_workers_leave_the_bytes_of_one_clean_run(base, run, tiny_teachers):
    clean_out = storage.join(base, "clean")
    run(clean_out)
    clean = _files(clean_out)
    assert len(clean) == 1 + 2 * 4 * 5  # the manifest; file and record of four shards and five columns
    moments = random.Random(0)
    kills, rounds, partial = 0, 0, 0
    while kills < KILLS:
        out = storage.join(base, f"round-{rounds}")
        rounds += 1
        finished = False
        while not finished:
            workers = [FORK.Process(target=run, args=(out,)) for _ in range(2)]
            for worker in workers:
                worker.start()
            if kills < KILLS:
                # moments are counted in published files, with a little time on top: seconds hang on the machine's load
                _wait(out, len(storage.list_names(out)) + moments.randrange(10), workers)
                time.sleep(moments.uniform(0, 0.02))
                victims = moments.choice(([0], [1], [0, 1], [0, 1], [0, 1]))
                for victim in victims:
                    workers[victim].kill()
            for worker in workers:
                worker.join(120)
            codes = [worker.exitcode for worker in workers]
            assert set(codes) <= {0, -9}, codes
            kills += codes.count(-9)
            finished = 0 in codes
            published = _files(out) if kills and storage.list_names(out) else {}
            assert published.items() <= clean.items()
            partial += 0 < len(published) < len(clean)
        assert _files(out) == clean
    assert partial  # moments in the middle of the work were among them
    verify(out, teachers=tiny_teachers, samples=2)
    assert manifest.read(out).teachers() == ["first", "second"]

"""A lock between real processes: one at a time, named, and free again after a kill."""

import subprocess
import sys
from pathlib import Path

import pytest

from mobileclip.errors import StorageError
from mobileclip.storage.lock import locked

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from mobileclip.storage.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("end", ["close", "kill"])
def test_the_second_one_names_the_first_and_waits_for_its_end(holder, tmp_path, end):
    named: list[str] = []

    def waiting(who: str) -> None:
        named.append(who)
        holder.kill() if end == "kill" else holder.stdin.close()

    with locked(tmp_path / "lock", waiting=waiting):
        assert holder.wait(60) is not None
    assert len(named) == 1
    assert named[0].startswith(f"process {holder.pid} on host ")
    with locked(tmp_path / "lock", waiting=named.append):  # free again, with nobody to name
        assert len(named) == 1


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"^storage: cannot write '.*/file/lock': "), locked(tmp_path / "file/lock"):
        pass

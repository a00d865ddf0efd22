"""Bad input and faults: a sample is quarantined and counted or one sentence stops the run, and a re-run is exact."""

import contextlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobileclip import manifest
from mobileclip.data import images
from mobileclip.data.shards import read_samples
from mobileclip.errors import DataError, StorageError
from mobileclip.models.replay import verify
from tests.stages import shapes
from tests.stages.preparing import run_prepare


def _files(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def _encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _huge_png(width: int, height: int) -> bytes:
    """A header that promises `width` x `height` pixels over a few bytes of data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def _scene() -> Image.Image:
    y, x = np.mgrid[0:30, 0:40]
    return Image.fromarray(np.stack([x * 6, y * 8, (x * y) % 256], axis=2).astype(np.uint8))


def _good() -> dict[str, tuple[bytes, tuple[int, int]]]:
    """Odd pictures that are read, with the size they have upright."""
    scene = _scene()
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [scene, scene.rotate(90)]
    return {
        "cmyk.jpg": (_encode(scene.convert("CMYK"), "JPEG"), (40, 30)),
        "deep.png": (
            _encode(Image.fromarray((np.arange(1200, dtype=np.uint16) * 54).reshape(30, 40)), "PNG"),
            (40, 30),
        ),
        "palette.png": (_encode(scene.convert("P"), "PNG"), (40, 30)),
        "animated.webp": (_encode(scene, "WEBP", save_all=True, append_images=frames[1:], lossless=True), (40, 30)),
        "turned.jpg": (_encode(scene, "JPEG", exif=exif), (30, 40)),
        "dot.png": (_encode(Image.new("RGB", (1, 1), "red"), "PNG"), (1, 1)),
        "clear.png": (_encode(scene.convert("RGBA"), "PNG"), (40, 30)),
    }


BAD = {
    "cut.jpg": (_encode(_scene(), "JPEG", quality=95)[:300], "image: cannot be decoded: "),
    "words.png": (b"this is no picture", "image: cannot be decoded: cannot identify image file"),
    "zero.png": (b"", "picture file is missing or empty"),
    "huge.png": (_huge_png(12_000, 9_000), "image: 12000x9000 pixels, want at most 50000000 in all"),
    "large.png": (_huge_png(9_000, 6_000), "image: 9000x6000 pixels, want at most 50000000 in all"),
    "endless.png": (_huge_png(2**31 - 1, 2**31 - 1), "image: cannot be decoded: "),
}


def _mixed(folder, kind):
    """Good, odd and broken pictures as a folder, a table or a tar."""
    folder.mkdir()
    pictures = {name: data for name, (data, _) in (_good() | BAD).items()}
    if kind == "tar":
        with tarfile.open(folder / "a.tar", "w") as tar:
            for name, data in pictures.items():
                for member, content in ((name, data), (f"{Path(name).stem}.txt", b"a caption")):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return folder
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
        if kind == "folder":
            (folder / name).with_suffix(".txt").write_text("a caption")
    if kind == "table":
        rows = [{"image": name, "caption": "a caption"} for name in pictures]
        (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("kind", ["folder", "table", "tar"])
def test_odd_pictures_are_kept_and_broken_ones_quarantined_with_their_reason(tmp_path, kind):
    source = _mixed(tmp_path / "source", kind)
    metrics = run_prepare(source, tmp_path / "out", max_bad_share=0.5, validation_share=0)
    assert (metrics["samples/train"], metrics["quarantined"]) == (len(_good()), len(BAD))
    content = manifest.read(str(tmp_path / "out"))
    assert content.quarantined == len(BAD)
    kept = {s.image: s for s in read_samples(str(tmp_path / "out"), content, "train")}
    for data, size in _good().values():
        assert (kept[data].metadata["width"], kept[data].metadata["height"]) == size
        assert images.decode(data).size == size
    rejected = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    found = {row["sample"].rpartition(":")[2].partition(".")[0]: row["reason"] for row in rejected}
    assert found.keys() == {Path(name).stem for name in BAD}
    for name, (_, reason) in BAD.items():
        assert found[Path(name).stem].startswith(reason)
    verify(str(tmp_path / "out"))
    run_prepare(source, tmp_path / "again", max_bad_share=0.5, validation_share=0)
    assert _files(tmp_path / "again") == _files(tmp_path / "out")


@pytest.mark.parametrize(
    ("size", "sentence"),
    [((12_000, 9_000), "12000x9000 pixels, want at most"), ((9_000, 6_000), "9000x6000 pixels, want at most")],
)
def test_a_header_of_a_hundred_megapixels_allocates_nothing(size, sentence):
    """324 MB of pixels are promised; neither Python nor the process grows by a tenth of it."""
    data = _huge_png(*size)
    assert len(data) < 200
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    with pytest.raises(DataError, match=sentence):
        images.decode(data, max_pixels=50_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32_000


def test_captions_empty_of_ten_kilobytes_and_of_no_utf8(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    long = "word " * 2048
    texts = {"a": b"", "b": b" \n\t ", "c": long.encode(), "d": b"caf\xe9 \xff", "e": "猫".encode()}
    for index, (name, text) in enumerate(texts.items()):
        (source / f"{name}.png").write_bytes(shapes.draw("red", "circle", 20 + 2 * index))
        (source / f"{name}.txt").write_bytes(text)
    metrics = run_prepare(source, tmp_path / "out", max_bad_share=0.5, validation_share=0)
    assert (metrics["samples/train"], metrics["quarantined"]) == (3, 2)
    content = manifest.read(str(tmp_path / "out"))
    captions = {s.captions[0] for s in read_samples(str(tmp_path / "out"), content, "train")}
    assert captions == {long.strip(), "caf\ufffd \ufffd", "猫"}
    assert (tmp_path / "out" / "quarantine.jsonl").read_text().count("no caption") == 2


def test_hostile_names_in_tars_touch_no_file_and_stay_out_of_uids(tmp_path):
    (tmp_path / "source").mkdir()
    names = ["../../evil", "/tmp/evil-absolute", "a/../../b", "x" * 300, "new\nline", "\udcff\udcfe"]
    with tarfile.open(tmp_path / "source" / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for index, name in enumerate(names):
            for extension, data in (("png", shapes.draw("red", "cross", 20 + 2 * index)), ("txt", b"x")):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    before = set(tmp_path.rglob("*")) | set(Path("/tmp").glob("evil*"))
    metrics = run_prepare(tmp_path / "source", tmp_path / "out", max_bad_share=0.5, validation_share=0)
    assert metrics["samples/train"] + metrics["quarantined"] == len(names)
    assert metrics["samples/train"] >= 5
    after = set(tmp_path.rglob("*")) | set(Path("/tmp").glob("evil*"))
    assert {p.parent for p in after - before} <= {tmp_path, tmp_path / "out"}
    content = manifest.read(str(tmp_path / "out"))
    assert all(len(s.uid) == 24 for s in read_samples(str(tmp_path / "out"), content, "train"))


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """A source of 60 pictures, some broken, and the files of an undisturbed run."""
    folder = tmp_path_factory.mktemp("clean")
    source = folder / "source"
    source.mkdir()
    rng = np.random.default_rng(0)
    for index in range(60):
        noise = Image.fromarray(rng.integers(0, 256, (120, 120, 3)).astype(np.uint8))
        data = _encode(noise, "PNG")
        (source / f"{index:02d}.png").write_bytes(data[:2000] if index % 20 == 7 else data)
        (source / f"{index:02d}.txt").write_text(f"noise {index}")
    run_prepare(source, folder / "out", **OPTIONS)
    return source, _files(folder / "out")


OPTIONS = {"shard_samples": 5, "max_bad_share": 0.1, "near_duplicates": True}


def _forked(source, out, said=Path("/dev/null"), prepared=None):
    """prepare in a process of its own (a fork has all libraries loaded); what stops it is written to `said`."""

    def work():
        if prepared is not None:
            prepared()
        try:
            run_prepare(source, out, **OPTIONS)
        except StorageError as error:
            said.write_text(str(error))
            os._exit(3)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


_MOMENTS = {"open", "os.rename", "os.link", "os.remove"}


def _dying(out, seen, moment):
    """Lets its process be killed before it opens, renames or removes a file below `out` for the time `moment`."""

    def prepared():
        process = os.getpid()

        def hook(event, arguments):
            if event in {"open", "os.rename", "os.link", "os.remove"} and str(arguments[0]).startswith(
                f"{out}{os.sep}"
            ):
                seen.value += 1
                if seen.value == moment:
                    os.kill(process, signal.SIGKILL)

        sys.addaudithook(hook)

    return prepared


def test_killed_at_any_moment_a_rerun_gives_the_same_bytes(clean, tmp_path):
    source, expected = clean
    out, seen = tmp_path / "out", multiprocessing.Value("i", 0)
    _forked(source, out, prepared=_dying(out, seen, 0)).join()
    moments = seen.value
    assert moments > 20
    shutil.rmtree(out)
    killed = unfinished = 0
    for trial in range(12):
        seen.value = 0
        process = _forked(source, out, prepared=_dying(out, seen, 1 + trial * moments // 12))
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        unfinished += not (out / "manifest.json").exists()
        if trial % 3 == 2:  # the others go on from what a killed one left
            shutil.rmtree(out)
    assert killed >= 9
    assert unfinished >= 9
    seen.value = 0
    process = _forked(source, out, prepared=_dying(out, seen, moments // 2))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    process = _forked(source, out)
    process.join()
    assert process.exitcode == 0
    assert _files(out) == expected


def test_a_file_limit_stops_with_a_sentence_and_a_rerun_is_exact(clean, tmp_path):
    source, expected = clean
    largest = max(len(data) for name, data in expected.items() if name.endswith(".tar"))
    out = tmp_path / "out"
    said = tmp_path / "said"
    limit = (largest - 1, largest - 1)
    process = _forked(source, out, said, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    process.join()
    assert process.exitcode == 3
    assert said.read_text().startswith(f"storage: cannot write '{out}/")
    assert said.read_text().endswith("File too large.")
    assert not (out / "manifest.json").exists()
    assert not list(out.glob(".*"))
    _forked(source, out).join()
    assert _files(out) == expected


@contextlib.contextmanager
def _small_disk(folder: Path, size: int):
    """A disk of `size` bytes; without the right to mount one, a limit on the size of a file has the same effect."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 30, size // 30)), lambda: None
        return
    grow = ["mount", "-o", "remount,size=200m", str(folder)]
    try:
        yield None, lambda: subprocess.run(grow, check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("share", [0.005, 0.3, 0.8])
def test_a_full_disk_stops_with_a_sentence_and_a_rerun_is_exact(clean, tmp_path, share):
    """At the catalog, at the first shards, at the last ones."""
    source, expected = clean
    size = int(share * sum(map(len, expected.values())))
    with _small_disk(tmp_path / "disk", size) as (limit, grow):
        out = tmp_path / "disk" / "out"
        said = tmp_path / "said"
        process = _forked(source, out, said, limit)
        process.join()
        assert process.exitcode == 3
        assert said.read_text().startswith(f"storage: cannot write '{out}")
        assert "\n" not in said.read_text()
        assert not (out / "manifest.json").exists()
        assert not list(out.glob(".*"))
        grow()
        process = _forked(source, out)
        process.join()
        assert process.exitcode == 0
        assert _files(out) == expected

"""One zip: the same bytes twice, runnable as it is, refused in one sentence if damaged or hostile."""

import hashlib
import json
import shutil
import stat
import subprocess
import zipfile

import numpy as np
import pytest

from mobileclip.errors import ConfigError, DataError, IntegrityError
from mobileclip.formats import contract, load
from mobileclip.formats.bundle import archive as bundle
from mobileclip.formats.bundle import tokenizer


@pytest.fixture(scope="module")
def export(clip, written, folder, tmp_path_factory):
    """An export folder with every program and the files beside them, one of them a folder."""
    from mobileclip.formats import contract_writer as terms
    from mobileclip.formats.bundle import golden_values as golden

    out = tmp_path_factory.mktemp("export")
    for program in written.values():
        shutil.copyfile(folder / program.path, out / program.path)
    (out / "package").mkdir()
    (out / "package" / "weights.bin").write_bytes(b"12")
    paths = [golden.write(clip, out), *tokenizer.write(clip.tokenizer, out / tokenizer.FOLDER), out / "package"]
    files = [contract.describe(path, root=out) for path in paths]
    agreed = terms.agree(clip, list(written.values()), files, dataset_sha256="d" * 64)
    owed = contract.Attribution(
        kind="data",
        name="ann",
        license="CC-BY-4.0 AND her-own",
        attribution="Drawings by Ann.",
        url="https://ann.example",
    )
    lineage = agreed.lineage.model_copy(update={"student_sha256": "ab" * 32})
    agreed = agreed.model_copy(update={"lineage": lineage, "attributions": [owed, *agreed.attributions]})
    (out / contract.FILE_NAME).write_bytes(agreed.to_bytes())
    return out


@pytest.fixture(scope="module")
def bundled(export, tmp_path_factory):
    return bundle.write(export, tmp_path_factory.mktemp("bundle"), extra={"page/index.html": b"<!doctype html>"})


def test_name_and_members(bundled, export):
    assert bundled.name == "mobileclip-tiny-mci-abababababab.zip"
    with zipfile.ZipFile(bundled) as archive:
        names = archive.namelist()
        kinds = {info.filename: info.compress_type for info in archive.infolist()}
    present = {p.relative_to(export).as_posix() for p in export.rglob("*") if p.is_file()}
    added = {bundle.CARD, bundle.NOTICES, bundle.SCHEMA, bundle.SUMS, "page/index.html"}
    assert set(names) == present | added
    assert kinds["image.float32.onnx"] == zipfile.ZIP_STORED
    assert kinds["tokenizer/tokenizer.json"] == zipfile.ZIP_DEFLATED


def test_same_bytes_twice(bundled, export, tmp_path):
    for path in export.rglob("*"):
        path.touch()
    again = bundle.write(export, tmp_path, extra={"page/index.html": b"<!doctype html>"})
    assert again.read_bytes() == bundled.read_bytes()
    with zipfile.ZipFile(again) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_version(export, tmp_path):
    path = bundle.write(export, tmp_path, version="1.2.0")
    assert path.name == "mobileclip-tiny-mci-1.2.0.zip"
    with zipfile.ZipFile(path) as archive:
        assert b"| Version | 1.2.0 |" in archive.read(bundle.CARD)
    with pytest.raises(ConfigError, match=r"version is '\.\./x'"):
        bundle.write(export, tmp_path, version="../x")


def test_it_runs(bundled, reference):
    programs = load(bundled, image="float16", text="int8", threads=1)
    scores = programs.encode_image(reference.pixels) @ programs.encode_text(reference.tokens).T
    np.testing.assert_allclose(scores, reference.image_features @ reference.text_features.T, atol=0.05)
    tokens = tokenizer.load(programs.folder / tokenizer.FOLDER)(["a cat"])
    assert tokens[0, :4].tolist() == [49406, 320, 2368, 49407]
    with pytest.raises(DataError, match="no onnx image program in int8"):
        load(bundled, image="int8")


def test_other_tools_read_it(bundled, tmp_path):
    """`sha256sum -c` agrees, and so does a plain unzip."""
    with zipfile.ZipFile(bundled) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
    done = subprocess.run(["sha256sum", "-c", bundle.SUMS], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == sum(p.is_file() for p in tmp_path.rglob("*")) - 1


def test_unpacked_is_an_export(bundled, tmp_path):
    agreed = bundle.unpack(bundled, tmp_path / "out")
    assert agreed == contract.read(tmp_path / "out") == bundle.verify(bundled)
    for file in (*agreed.programs, *agreed.files):
        contract.check(tmp_path / "out", file)
    with pytest.raises(DataError, match="exists, want a new folder"):
        bundle.unpack(bundled, tmp_path / "out")


def test_texts_say_what_matters(bundled, clip):
    with zipfile.ZipFile(bundled) as archive:
        card, notices = archive.read(bundle.CARD).decode(), archive.read(bundle.NOTICES).decode()
        schema = json.loads(archive.read(bundle.SCHEMA))
    assert "`image.float32.onnx` | onnx | float32" in card
    assert "squash to 64 x 64 pixels" in card
    assert clip.license in notices
    assert notices.count("Permission is hereby granted") == 2  # tokenizer and the page's runtime
    assert "Drawings by Ann. <https://ann.example>" in notices
    assert "`CC-BY-4.0`: <https://creativecommons.org/licenses/by/4.0/>" in notices
    assert "- `her-own`: its text is not known here" in notices  # stated, not dropped
    assert "| ann | data | `CC-BY-4.0 AND her-own` |" in card
    assert schema["title"] == "Contract"


def test_damage_in_any_member_is_found(bundled, tmp_path):
    data = bundled.read_bytes()
    with zipfile.ZipFile(bundled) as archive:
        places = {i.filename: i.header_offset + 30 + len(i.filename) + i.compress_size // 2 for i in archive.infolist()}
    path = tmp_path / bundled.name
    for name in ("image.float32.onnx", "text.int8.onnx", "tokenizer/vocab.json", contract.FILE_NAME, bundle.SUMS):
        damaged = bytearray(data)
        damaged[places[name]] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"^bundle: .*(damaged|changed).*\.$") as raised:
            bundle.unpack(path, tmp_path / "out")
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "out").exists()


def test_truncated_foreign_and_missing(bundled, tmp_path):
    path = tmp_path / "cut.zip"
    path.write_bytes(bundled.read_bytes()[:-1000])
    with pytest.raises(IntegrityError, match=r"'cut\.zip' cannot be read, it is damaged: its \d+ bytes end without"):
        bundle.verify(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(IntegrityError, match="it is no bundle"):
        load(path)
    with pytest.raises(DataError, match="no file"):
        load(tmp_path / "nowhere.zip")


def _rewrite(bundled, path, *, change=None, add=None, sums=True):
    """The bundle with changed or added members and, like a forger's, with checksums that fit."""
    with zipfile.ZipFile(bundled) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    members |= change or {}
    infos = {name: zipfile.ZipInfo(name) for name in members} | {info.filename: info for info, _ in add or []}
    members |= {info.filename: data for info, data in add or []}
    if sums:
        lines = [f"{hashlib.sha256(d).hexdigest()}  {n}\n" for n, d in members.items() if n != bundle.SUMS]
        members[bundle.SUMS] = "".join(lines).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(infos[name], data)
    return path


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "c:evil.txt"])
def test_names_that_lead_out(bundled, tmp_path, name):
    path = _rewrite(bundled, tmp_path / "evil.zip", add=[(zipfile.ZipInfo(name), b"evil")])
    with pytest.raises(IntegrityError, match="leads out of it"):
        bundle.unpack(path, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil.txt"))


def test_links_and_extras(bundled, tmp_path):
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    path = _rewrite(bundled, tmp_path / "link.zip", add=[(link, b"/etc/passwd")])
    with pytest.raises(IntegrityError, match="leads out of it"):
        bundle.unpack(path, tmp_path / "out")
    path = _rewrite(bundled, tmp_path / "extra.zip", add=[(zipfile.ZipInfo("extra.txt"), b"x")], sums=False)
    with pytest.raises(IntegrityError, match=r"disagree about 'extra\.txt'"):
        bundle.unpack(path, tmp_path / "out")


def test_file_that_is_also_a_folder(bundled, tmp_path):
    path = _rewrite(bundled, tmp_path / "both.zip", add=[(zipfile.ZipInfo("golden.json/x"), b"x")])
    with pytest.raises(IntegrityError, match=r"holds 'golden\.json' as a file and as a folder"):
        bundle.verify(path)


def test_exchanged_program_with_fitting_checksums(bundled, export, tmp_path):
    other = (export / "text.float32.onnx").read_bytes()
    path = _rewrite(bundled, tmp_path / "swap.zip", change={"text.float16.onnx": other})
    with pytest.raises(IntegrityError, match=r"'text\.float16\.onnx' .* is not the file its contract was written for"):
        bundle.verify(path)


_LARGE = [*(f"{tower}.{kind}.onnx" for tower in ("image", "text") for kind in ("float32", "float16")), "text.int8.onnx"]


def test_bomb(bundled, tmp_path):
    bomb = zipfile.ZipInfo("zeros")
    bomb.compress_type = zipfile.ZIP_DEFLATED
    path = _rewrite(bundled, tmp_path / "bomb.zip", change=dict.fromkeys(_LARGE, b""), add=[(bomb, bytes(400 << 20))])
    with pytest.raises(IntegrityError, match="unpacks to more than 64 times its size"):
        bundle.unpack(path, tmp_path / "out")


def test_damaged_export_is_not_bundled(export, tmp_path):
    copy = tmp_path / "export"
    shutil.copytree(export, copy)
    (copy / "text.int8.onnx").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"text\.int8\.onnx: sha256"):
        bundle.write(copy, tmp_path / "out")
    assert not list(tmp_path.rglob("*.zip"))

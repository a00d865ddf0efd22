"""Pins, archives, fetching and steps of the emoji data, on archives made here and without a network."""

import base64
import dataclasses
import hashlib
import io
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from examples.emoji import fetch as fetching
from examples.emoji.__main__ import run_step
from examples.emoji.archives import check_member_name, read_members, write_member
from examples.emoji.packages import Package, check_archive, load_packages
from mobileclip.errors import DataError, IntegrityError


def a_package(content: bytes, **changes) -> Package:
    package = Package(
        name="tiny",
        registry="npm",
        version="1.0.0",
        file="tiny-1.0.0.tgz",
        sha256=hashlib.sha256(content).hexdigest(),
        integrity="sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode(),
        role="captions",
        license="MIT",
        attribution="nobody",
        homepage="https://example.org",
    )
    return dataclasses.replace(package, **changes)


def a_zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return buffer.getvalue()


def a_tgz(members: dict[str, bytes], *, link: tuple[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as bundle:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            bundle.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.SYMTYPE, link[1]
            bundle.addfile(info)
    return buffer.getvalue()


class TestPackages:
    def test_every_pin_is_complete(self):
        packages = load_packages()
        assert len(packages) == 8
        for package in packages:
            assert re.fullmatch(r"[0-9a-f]{64}", package.sha256)
            assert package.version in package.file
            assert package.homepage.startswith("https://")
            assert package.attribution.endswith(".")
            assert (package.integrity is not None) == (package.registry == "npm")
            assert (package.picture_set is not None) == (package.use is not None) == (package.role == "artist")

    def test_integrity_is_a_whole_sha512(self):
        for package in load_packages():
            if package.integrity is not None:
                assert len(base64.b64decode(package.integrity.removeprefix("sha512-"), validate=True)) == 64

    def test_one_artist_is_kept_for_evaluation(self):
        uses = {p.picture_set: p.use for p in load_packages() if p.role == "artist"}
        assert [name for name, use in uses.items() if use == "evaluation"] == ["fluent3d"]
        assert len(uses) == 5

    def test_unknown_key_is_refused(self, tmp_path):
        (tmp_path / "p.yaml").write_text("- {name: a, colour: red}\n")
        with pytest.raises(DataError, match=r"p\.yaml has a package with a missing or unknown key.*colour"):
            load_packages(tmp_path / "p.yaml")


class TestCheckArchive:
    def test_right_hashes_pass(self, tmp_path):
        (tmp_path / "x.tgz").write_bytes(b"content")
        check_archive(tmp_path / "x.tgz", package=a_package(b"content"))

    @pytest.mark.parametrize("field", ["sha256", "integrity"])
    def test_each_hash_is_checked_and_both_values_are_named(self, tmp_path, field):
        path = tmp_path / "x.tgz"
        path.write_bytes(b"content")
        wanted = getattr(a_package(b"other"), field)
        got = getattr(a_package(b"content"), field)
        with pytest.raises(IntegrityError) as caught:
            check_archive(path, package=a_package(b"content", **{field: wanted}))
        assert "package tiny 1.0.0" in str(caught.value)
        assert got in str(caught.value)
        assert wanted in str(caught.value)


class TestArchives:
    @pytest.mark.parametrize(
        "name", ["../evil", "/etc/passwd", "a/../../evil", "..", "C:evil", "a\\..\\evil", "nul\0byte", ""]
    )
    def test_names_that_leave_the_folder_are_refused(self, name):
        with pytest.raises(DataError, match="only relative names"):
            check_member_name(name, archive="x")

    @pytest.mark.parametrize("make", [a_zip, a_tgz])
    def test_one_hostile_member_condemns_the_archive(self, tmp_path, make):
        path = tmp_path / "hostile"
        path.write_bytes(make({"good.txt": b"good", "../../evil.txt": b"evil"}))
        with pytest.raises(DataError, match=r"hostile has the member '../../evil\.txt'"):
            read_members(path, select=lambda name: name == "good.txt")

    @pytest.mark.parametrize("make", [a_zip, a_tgz])
    def test_selected_members_come_back(self, tmp_path, make):
        path = tmp_path / "good"
        path.write_bytes(make({"a/1.svg": b"1", "a/2.png": b"2", "b.svg": b"3"}))
        assert read_members(path, select=lambda name: name.endswith(".svg")) == {"a/1.svg": b"1", "b.svg": b"3"}

    def test_link_is_refused_when_selected(self):
        archive = a_tgz({"a": b"1"}, link=("secret", "/etc/passwd"))
        with pytest.raises(DataError, match="'secret' as a link"):
            read_members(archive, select=lambda _: True)
        assert read_members(archive, select=lambda name: name == "a") == {"a": b"1"}

    def test_member_that_unpacks_to_too_much(self, monkeypatch):
        monkeypatch.setattr("examples.emoji.archives.MAX_MEMBER_BYTES", 10)
        with pytest.raises(DataError, match="'big' to more than 10 bytes"):
            read_members(a_zip({"big": b"0" * 11}), select=lambda _: True)

    @pytest.mark.parametrize(
        "damaged", [b"", b"not an archive", a_tgz({"a": b"1" * 5000})[:60]], ids=["empty", "text", "cut"]
    )
    def test_damaged_archive(self, damaged):
        with pytest.raises(DataError, match="in memory cannot be read"):
            read_members(damaged, select=lambda _: True)

    def test_write_member_stays_inside(self, tmp_path):
        root = tmp_path / "root"
        assert write_member(root, name="a/b.json", content=b"{}").read_bytes() == b"{}"
        with pytest.raises(DataError, match="only relative names"):
            write_member(root, name="../b.json", content=b"{}")

    def test_write_member_does_not_follow_a_link_out(self, tmp_path):
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "out").symlink_to(tmp_path, target_is_directory=True)
        with pytest.raises(DataError, match="outside of"):
            write_member(tmp_path / "root", name="out/evil", content=b"")
        assert not (tmp_path / "evil").exists()


class TestFetch:
    def test_cached_archives_need_no_client(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", "")
        package = a_package(b"content")
        (tmp_path / package.file).write_bytes(b"content")
        assert fetching.fetch([package], cache=tmp_path) == {"tiny": tmp_path / package.file}
        assert [path.name for path in tmp_path.iterdir()] == [package.file]

    def test_wrong_download_never_reaches_the_cache(self, tmp_path):
        package = a_package(b"content")
        folder = tmp_path / "download"
        folder.mkdir()
        (folder / package.file).write_bytes(b"tampered")
        with pytest.raises(IntegrityError, match=r"tiny 1\.0\.0 has sha256 .* but sha256 .* is pinned"):
            fetching._adopt(package, folder=folder, cache=tmp_path)
        assert not (tmp_path / package.file).exists()

    def test_client_that_gives_another_file(self, tmp_path):
        with pytest.raises(DataError, match=r"gave nothing but tiny-1\.0\.0\.tgz is wanted"):
            fetching._adopt(a_package(b""), folder=tmp_path, cache=tmp_path)

    def test_failing_client_shows_its_last_lines(self):
        script = "import sys; print('one\\ntwo\\nthree\\nfour', file=sys.stderr); sys.exit(7)"
        with pytest.raises(DataError, match="failed with code 7: two / three / four"):
            fetching._run([sys.executable, "-c", script])


class TestRunStep:
    def run(self, out: Path, work) -> bool:
        return run_step("step", out, work, sources=["catalog.py"], libraries=["pillow"], outputs=["a.txt", "folder"])

    def write(self, out: Path) -> None:
        (out / "folder").mkdir(exist_ok=True)
        (out / "folder" / "b.txt").write_text("b")
        (out / "a.txt").write_text("a")

    def test_second_run_does_nothing(self, tmp_path):
        assert self.run(tmp_path, lambda: self.write(tmp_path))
        assert not self.run(tmp_path, lambda: pytest.fail("was done again"))

    def test_missing_output_is_made_again(self, tmp_path):
        self.run(tmp_path, lambda: self.write(tmp_path))
        (tmp_path / "folder" / "b.txt").unlink()
        assert self.run(tmp_path, lambda: self.write(tmp_path))
        assert (tmp_path / "folder" / "b.txt").exists()

    def test_failed_work_is_not_taken_for_done(self, tmp_path):
        def fail() -> None:
            self.write(tmp_path)
            raise DataError("broken.")

        with pytest.raises(DataError):
            self.run(tmp_path, fail)
        assert self.run(tmp_path, lambda: self.write(tmp_path))

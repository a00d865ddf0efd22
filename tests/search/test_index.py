"""The index: what is embedded, what is not embedded twice, what is skipped, and what a damaged one costs."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from mobileclip.errors import ConfigError, DataError
from mobileclip.formats import load
from mobileclip.search import index as indexes
from tests.exports import exported
from tests.search.photos import fill


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "photos")
    return tmp_path / "photos"


def update(folder, model, **options):
    return indexes.update(folder, model, batch_size=4, **options)


def test_every_image_once_and_nothing_hidden(tmp_path, watched):
    model, calls = watched
    names = fill(tmp_path)
    index, done = update(tmp_path, model)
    assert index.names == names
    assert list(index.broken) == ["broken.jpg", "empty.png"]
    assert sum(calls) == 9  # the copy is known by its bytes
    assert max(calls) <= 4
    assert done == indexes.Update(embedded=9, known=1, kept=0, removed=0, broken=2)
    wanted = load(exported().bundle, threads=1).encode_image([tmp_path / name for name in names])
    np.testing.assert_allclose(index.embeddings(names), wanted, atol=1e-5)


def test_only_what_is_new_is_embedded(folder, watched):
    model, calls = watched
    before, _ = update(folder, model)
    calls.clear()
    index, done = update(folder, model)
    assert (calls, done) == ([], indexes.Update(0, 0, kept=12, removed=0, broken=2))
    np.testing.assert_array_equal(index.embeddings(index.names), before.embeddings(before.names))

    Image.new("RGB", (30, 40), "teal").save(folder / "new.png")
    (folder / "01.png").rename(folder / "renamed.png")
    os.utime(folder / "02.png", ns=(1, 1))  # touched, the same bytes
    (folder / "03.png").unlink()
    index, done = update(folder, model)
    assert (calls, done) == ([1], indexes.Update(embedded=1, known=2, kept=9, removed=2, broken=2))
    assert "renamed.png" in index.names
    assert not {"01.png", "03.png"} & set(index.names)
    np.testing.assert_array_equal(index.embeddings(["renamed.png"]), before.embeddings(["01.png"]))


def test_a_changed_image_is_embedded_again(folder, watched):
    model, calls = watched
    before, _ = update(folder, model)
    calls.clear()
    (folder / "00.png").write_bytes((folder / "04.png").read_bytes())
    (folder / "broken.jpg").write_bytes((folder / "旅行" / "東京.webp").read_bytes())
    Image.new("RGB", (9, 9), "navy").save(folder / "05.png")
    index, _ = update(folder, model)
    assert sum(calls) == 1
    assert list(index.broken) == ["empty.png"]
    np.testing.assert_array_equal(index.embeddings(["00.png"]), before.embeddings(["04.png"]))
    assert not np.array_equal(index.embeddings(["05.png"]), before.embeddings(["05.png"]))


def test_images_that_are_gone_leave_nothing_behind(folder, model):
    update(folder, model)
    for name in ("00.png", "copy of 00.png", "04.png"):
        (folder / name).unlink()
    update(folder, model)
    stored = indexes.read(indexes.path_of(model, folder, None), model)
    assert len(stored.vectors) == 7


@pytest.mark.parametrize("damage", ["cut", "text", "names", "model"])
def test_a_damaged_index_is_made_again(folder, watched, damage, caplog):
    model, calls = watched
    before, _ = update(folder, model)
    path = indexes.path_of(model, folder, None)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("no index")
    elif damage == "names":
        path.write_bytes(path.read_bytes().replace(b'"sha256"', b'"sha257"'))
    else:
        path.write_bytes(path.read_bytes().replace(model.identity.encode(), b"0" * 64))
    calls.clear()
    index, _ = update(folder, model)
    assert sum(calls) == 9
    assert "is not used and made again" in caplog.text
    np.testing.assert_array_equal(index.embeddings(index.names), before.embeddings(before.names))


def test_each_model_has_its_own_index(folder, model):
    from mobileclip.search.model import open_model

    student = open_model(str(exported().checkpoint))
    half = open_model(str(exported().export), image="float16", threads=1)
    assert len({model.identity, student.identity, half.identity}) == 3
    first, _ = update(folder, model)
    for other in (student, half):
        index, done = update(folder, other)
        assert done.embedded == 9
        assert (index.embeddings(index.names) * first.embeddings(first.names)).sum(1).min() > 0.999
    assert len(list((folder / indexes.FOLDER).glob("*.safetensors"))) == 3


def test_an_interrupted_run_keeps_what_was_embedded(tmp_path, model, monkeypatch):
    import dataclasses

    monkeypatch.setattr(indexes, "_SAVE_EVERY", 4)
    fill(tmp_path)
    calls = []

    def encode(pixels):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(pixels))
        return model.encode_pixels(pixels)

    with pytest.raises(KeyboardInterrupt):
        update(tmp_path, dataclasses.replace(model, encode_pixels=encode))
    index, done = update(tmp_path, model)
    assert done.embedded == 9 - sum(calls)
    assert len(index.names) == 10


def test_names_that_are_no_unicode(tmp_path, model):
    source = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(source)
    shutil.copy(os.fsencode(source), os.fsencode(tmp_path) + b"/\xff\xfe.png")
    index, _ = update(tmp_path, model)
    assert indexes.read(indexes.path_of(model, tmp_path, None), model).names == index.names
    assert os.fsencode(index.names[1]) == b"\xff\xfe.png"


def test_the_index_goes_elsewhere(folder, tmp_path, model):
    update(folder, model, place=tmp_path / "indexes")
    assert not (folder / indexes.FOLDER).exists()
    assert len(list((tmp_path / "indexes").iterdir())) == 1


def test_refusals(tmp_path, folder, watched):
    model, calls = watched
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"^index: '.*file' cannot be written \(.+\), want --index, a folder for it\.$"
    ):
        update(folder, model, place=tmp_path / "file")
    assert calls == []
    (tmp_path / "none" / ".hidden").mkdir(parents=True)
    with pytest.raises(DataError, match=r"^folder: '.*none' holds no images \(.*\.jpg, .*\)\.$"):
        update(tmp_path / "none", model)
    (tmp_path / "none" / "a.png").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"none of the 1 images in '.*none' can be read; 'a\.png': image: cannot be dec"
    ):
        update(tmp_path / "none", model)
    with pytest.raises(ConfigError, match="batch_size: got 0, want 1 or more"):
        indexes.update(folder, model, batch_size=0)


def test_a_file_beyond_the_bound_is_not_loaded(tmp_path, model):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(indexes.MAX_BYTES + 1)
    index, _ = update(tmp_path, model)
    assert index.broken == {"huge.png": f"file: got {indexes.MAX_BYTES + 1} bytes, want at most {indexes.MAX_BYTES}."}

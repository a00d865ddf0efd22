"""The page as its user meets it: same embeddings as Python, same answers, no network, on a phone and on a desk."""

import io
import itertools
import json
import re
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from mobileclip.data import images
from mobileclip.data.preprocess import image_tensor
from mobileclip.formats import contract
from mobileclip.formats.bundle import archive as bundle
from mobileclip.formats.bundle import prompt_bank, serve, tokenizer
from tests.models.perturbed import patterned_images
from tests.page.browser import chromium
from tests.page.conftest import ANN, LABELS

MIN_COSINE = 0.9999
TEXTS = [row for row in tokenizer.VECTORS[: -tokenizer.NUM_REPAIRED] if row.strip()]


def _encoded(mode, kind, size=(211, 170), seed=0, **options):
    pixels = (patterned_images(1, max(size), seed)[0] * 255).round().to(torch.uint8)[:, : size[1], : size[0]]
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert(mode)
    if "A" in mode:
        ramp = np.tile(np.linspace(0, 255, size[0]).astype(np.uint8), (size[1], 1))
        picture.putalpha(Image.fromarray(ramp))
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def _turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encoded("RGB", "JPEG", seed=orientation, quality=95, exif=exif)


def _turned_webp(orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encoded("RGB", "WEBP", seed=orientation, lossless=True, exif=exif, **options)


PICTURES = {
    "rgb.png": _encoded("RGB", "PNG", seed=1),
    "gray.png": _encoded("L", "PNG", seed=2),
    "palette.png": _encoded("P", "PNG", seed=3),
    "palette.gif": _encoded("P", "GIF", seed=4),
    "flat.bmp": _encoded("RGB", "BMP", seed=5),
    "lossless.webp": _encoded("RGB", "WEBP", seed=6, lossless=True),
    "clear.png": _encoded("RGBA", "PNG", seed=7),
    "photo.jpg": _encoded("RGB", "JPEG", size=(640, 427), seed=8, quality=85),
    "gray.jpg": _encoded("L", "JPEG", seed=9, quality=85),
    "lossy.webp": _encoded("RGB", "WEBP", seed=10, quality=80),
    "turned3.jpg": _turned(3),
    "turned6.jpg": _turned(6),
    "tiny.png": _encoded("RGB", "PNG", size=(9, 31), seed=11),
    "large.jpg": _encoded("RGB", "JPEG", size=(2600, 1950), seed=12, quality=80),
    **{f"turned{orientation}.webp": _turned_webp(orientation) for orientation in range(1, 10)},
}
EXACT = (
    "rgb.png", "gray.png", "palette.png", "palette.gif", "flat.bmp", "lossless.webp", "tiny.png",
    *(f"turned{orientation}.webp" for orientation in range(1, 10)),
)  # fmt: skip


@pytest.fixture(scope="module")
def shown(page, tmp_path_factory):
    """The page with all pictures chosen and embedded."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)
    (folder / "broken.jpg").write_bytes(PICTURES["photo.jpg"][:300])
    page.put_files("#files", [folder / name for name in [*PICTURES, "broken.jpg"]])
    page.wait(
        f"mobileclip.state.pictures.length === {len(PICTURES)} && mobileclip.state.pictures.every((p) => p.features)"
    )
    return page


@pytest.fixture(scope="module")
def wanted(clip):
    """Embeddings from Python, by picture."""
    fitted = [images.resize(images.decode(data), clip.preprocess) for data in PICTURES.values()]
    features = clip.encode_image(image_tensor(torch.stack(fitted), clip.preprocess)).numpy()
    return dict(zip(PICTURES, features, strict=True))


@pytest.fixture(scope="module")
def got(shown):
    rows = shown.evaluate("mobileclip.state.pictures.map((p) => [p.file.name, [...p.features]])")
    return {name: np.array(row, np.float32) for name, row in rows}


@pytest.mark.parametrize("name", PICTURES)
def test_picture_embeddings_equal_pythons(got, wanted, name):
    assert float(got[name] @ wanted[name]) >= MIN_COSINE
    assert np.linalg.norm(got[name]) == pytest.approx(1, abs=1e-5)


def test_pictures_differ(wanted):
    """So that the cosines above mean something."""
    rows = np.stack(list(wanted.values()))
    others = (rows @ rows.T)[~np.eye(len(rows), dtype=bool)]
    assert others.mean() < 0.99


def test_lossless_pixels_are_pillows(shown, clip):
    script = "Promise.all(mobileclip.state.pictures.map((p) => mobileclip.engine.call('pixels', p.file)))"
    pixels = dict(zip(PICTURES, shown.evaluate(script), strict=True))
    size = clip.preprocess.size
    for name, data in PICTURES.items():
        mine = np.array(pixels[name], np.int16).reshape(size, size, 3)
        pillows = images.resize(images.decode(data), clip.preprocess).permute(1, 2, 0).numpy().astype(np.int16)
        assert np.abs(mine - pillows).max() <= (0 if name in EXACT else 3), name


def test_text_embeddings_equal_pythons(shown, clip):
    script = f"mobileclip.engine.encodeTexts({json.dumps(TEXTS)}).then(({{ features }}) => [...features])"
    rows = np.array(shown.evaluate(script), np.float32).reshape(len(TEXTS), -1)
    cosines = (rows * clip.encode_text(TEXTS).numpy()).sum(1)
    assert cosines.min() >= MIN_COSINE
    ids = shown.evaluate(f"mobileclip.engine.call('tokens', {json.dumps(TEXTS)})")
    assert ids == clip.tokenizer(TEXTS).tolist()


def _type(page, field, text):
    page.evaluate(
        f"(() => {{ const e = document.getElementById('{field}'); e.value = {json.dumps(text)};"
        "e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); })()"
    )


def _softmax(values):
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def _shown_scores(page):
    return page.evaluate(
        "[...document.querySelectorAll('#scores li')].map((li) => [li.children[0].textContent, "
        "parseFloat(li.children[1].textContent.replace('< ', ''))])"
    )


def _expect(page, labels, shares):
    order = np.argsort(-shares)
    page.wait(f"document.querySelector('#scores b')?.textContent === {json.dumps(labels[order[0]])}", seconds=20)
    scores = _shown_scores(page)
    assert [name for name, _ in scores] == [labels[i] for i in order]
    np.testing.assert_allclose([value for _, value in scores], np.maximum(100 * shares[order], 0.1), atol=0.11)


def test_prompt_bank_answers_as_python(shown, clip, wanted, bundled):
    page = shown
    assert page.evaluate("document.getElementById('bank').value") == "textures"
    agreed = bundle.verify(bundled)
    assert agreed.prompt_banks[0].labels == len(LABELS)
    bank = prompt_bank.embed(lambda texts: clip.encode_text(texts).numpy(), LABELS, ["a picture of {}"])
    shares = _softmax(clip.logit_scale * (bank.features @ wanted["rgb.png"]))
    page.wait("document.querySelectorAll('#scores li').length > 0")
    scores = dict(_shown_scores(page))
    for name, share in zip(LABELS, shares, strict=True):
        assert scores[name] == pytest.approx(100 * share, abs=1.5)  # int8 rows, times a logit scale of 14


def test_own_labels_answer_as_python(shown, clip, wanted):
    _type(shown, "bank", "")
    _type(shown, "template", "a drawing of a {}.")
    _type(shown, "labels", "red wall, blue wall\nétoile,猫, <b>bold</b>")
    labels = ["red wall", "blue wall", "étoile", "猫", "<b>bold</b>"]
    texts = clip.encode_text([f"a drawing of a {label}." for label in labels]).numpy()
    shares = _softmax(clip.logit_scale * (texts @ wanted["rgb.png"]))
    shown.wait("[...document.querySelectorAll('#scores li')].some((li) => li.textContent.startsWith('猫'))")
    _expect(shown, labels, shares)
    assert not shown.evaluate("document.querySelector('#scores li b b, #scores span b') !== null")


def test_search_ranks_as_python(shown, clip, wanted):
    _type(shown, "query", "wild green pattern")
    shown.wait("document.querySelectorAll('#gallery .score').length > 5")
    names = shown.evaluate("[...document.querySelectorAll('#gallery img')].map((i) => i.alt)")
    text = clip.encode_text(["wild green pattern"]).numpy()[0]
    cosines = {name: float(row @ text) for name, row in wanted.items()}
    ranked = [cosines[name] for name in names]
    assert sorted(names) == sorted(PICTURES)
    assert all(a >= b - 1e-4 for a, b in itertools.pairwise(ranked))
    _type(shown, "query", "")
    shown.wait("document.querySelectorAll('#gallery .score').length === 0")
    assert shown.evaluate("document.querySelector('#gallery img').alt") == "rgb.png"


def test_similar_pictures_rank_as_python(shown, wanted):
    shown.evaluate("document.getElementById('similar').click()")
    shown.wait("document.querySelectorAll('#gallery .score').length > 5")
    names = shown.evaluate("[...document.querySelectorAll('#gallery img')].map((i) => i.alt)")
    assert names[0] == "rgb.png"
    cosines = [float(wanted[name] @ wanted["rgb.png"]) for name in names]
    assert all(a >= b - 1e-4 for a, b in itertools.pairwise(cosines))


def test_it_says_what_it_runs_and_how_fast(shown, clip):
    shown.evaluate("document.getElementById('about').open = true")
    facts = shown.evaluate("document.getElementById('facts').innerText")
    assert "float32, " in facts
    assert re.search(r"A picture\s+[\d.]+ ms", facts)
    assert re.search(r"golden picture at cosine (1\.0000|0\.9999)", facts)
    assert "8 golden texts: tokens equal" in facts
    assert clip.license in facts
    assert re.search(r"Web\w+ on this device, \d+ ms a picture", shown.evaluate("document.body.innerText"))
    assert "1 could not be read" in shown.evaluate("document.getElementById('found').textContent")
    assert shown.evaluate("document.getElementById('alert').hidden")


def test_it_tells_what_the_student_was_made_from(shown):
    shown.evaluate("document.getElementById('about').open = true")
    lines = shown.evaluate("document.getElementById('credits').innerText").splitlines()
    assert lines == ["ann Drawings by <b>Ann</b>. · CC-BY-4.0", "first · MIT · her-own"]
    links = shown.evaluate("[...document.querySelectorAll('#credits a')].map((a) => [a.textContent, a.href, a.rel])")
    assert links == [
        [text, url, "noopener noreferrer"]
        for text, url in (
            ("ann", ANN),
            ("CC-BY-4.0", "https://creativecommons.org/licenses/by/4.0/"),
            ("MIT", "https://opensource.org/license/mit"),
        )
    ]


@pytest.mark.parametrize(("width", "height"), [(320, 640), (390, 844), (1280, 900)])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits(shown, width, height, dark):
    shown.size(width, height, dark=dark)
    shown.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(null))))")
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    small = shown.evaluate(
        "[...document.querySelectorAll('button, select, .button, textarea, #query, #template')]"
        ".filter((e) => e.offsetParent && e.getBoundingClientRect().height < 43).map((e) => e.id || e.textContent)"
    )
    assert small == []  # a finger needs 44 px
    pixels = shown.screenshot().astype(float)
    assert pixels.shape == (height, width, 3)
    edge = pixels[:, :3].mean()
    assert edge < 40 if dark else edge > 230
    bands = pixels[: height // 20 * 20].reshape(-1, 20, width, 3)
    assert (bands.std(axis=(1, 2)).max(axis=1) > 2).mean() > 0.8


def test_it_asks_for_nothing_outside(shown, served):
    """With the resolver switched off everything above worked; and nothing else was even asked for."""
    assert shown.evaluate("fetch('https://example.com/').then(() => 'there', () => 'nothing')") == "nothing"
    origin = served.rsplit("/", 2)[0]
    outside = [u for u in shown.requests if not u.startswith((origin, "blob:", "data:")) and "example.com" not in u]
    assert outside == []
    text = b"".join(data for name, data in _own_files().items()).decode()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert [line for line in shown.console if "example.com" not in line] == []


def test_the_keyboard_stays_where_it_is(shown):
    """Choosing a picture, ranking all of them and clearing take no focus away."""
    focus = "document.activeElement.querySelector('img')?.alt"
    for name in ("gray.png", "tiny.png"):
        tile = f"document.querySelector('#gallery img[alt=\"{name}\"]').parentElement"
        shown.evaluate(f"({tile}.focus(), {tile}.click())")
        shown.wait(f"mobileclip.state.current.file.name === '{name}'")
        assert shown.evaluate(focus) == name
    shown.evaluate("document.getElementById('similar').click()")
    shown.wait("document.querySelector('#gallery img').alt === 'tiny.png'")
    assert shown.evaluate(focus) == "tiny.png"


def test_a_program_that_fails_is_no_unreadable_picture(shown, tmp_path):
    (tmp_path / "more.png").write_bytes(PICTURES["rgb.png"])
    shown.evaluate(
        "(window.kept = mobileclip.engine.encodeImage, mobileclip.engine.encodeImage = "
        "() => Promise.reject(new Error('wasm: out of memory')))"
    )
    before = shown.evaluate("[mobileclip.state.pictures.length, mobileclip.state.failed]")
    shown.put_files("#files", [tmp_path / "more.png"])
    shown.wait("!document.getElementById('alert').hidden")
    assert shown.evaluate("document.getElementById('alert').textContent") == "wasm: out of memory"
    assert shown.evaluate("[mobileclip.state.pictures.length, mobileclip.state.failed]") == before
    shown.evaluate("(mobileclip.engine.encodeImage = window.kept, null)")


def test_cleared_pictures_do_not_come_back(shown, tmp_path):
    """Also those that are in work; the keyboard then is at the button for new ones."""
    (tmp_path / "late.png").write_bytes(PICTURES["rgb.png"])
    shown.evaluate(
        "(mobileclip.engine.encodeImage = async (file) => { const found = await window.kept(file); "
        "await new Promise((go) => { window.go = go; }); return found; }, null)"
    )
    shown.put_files("#files", [tmp_path / "late.png"])
    shown.wait("Boolean(window.go)")
    shown.evaluate("document.getElementById('clear').click()")
    assert shown.evaluate("document.activeElement.id") == "files"
    shown.evaluate("(window.go(), new Promise((done) => setTimeout(done, 300)))")
    assert shown.evaluate("[mobileclip.state.pictures.length, mobileclip.state.current]") == [0, None]
    assert shown.evaluate("document.getElementById('picture').hidden")
    assert shown.evaluate("document.querySelectorAll('#gallery li, #scores li').length") == 0


def _own_files():
    from tests.page.node import PAGE

    return {i.name: i.read_bytes() for i in PAGE.iterdir() if i.name.endswith((".js", ".html", ".css", ".svg"))}


def test_damaged_program_is_refused(bundled, tmp_path):
    """A server may hand out anything; the page compares with the contract."""
    folder = tmp_path / "export"
    bundle.unpack(bundled, folder)
    path = folder / contract.read(folder).program("image", precision="float32").path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with serve.serving(folder) as server, chromium(tmp_path / "profile") as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.open(serve.address(server))
        browser.wait("!document.getElementById('alert').hidden")
        told = browser.evaluate("document.getElementById('alert').textContent")
        time.sleep(0.1)
        server.shutdown()
    assert told == "image.float32.onnx is not the file its contract was written for."

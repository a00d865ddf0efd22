"""The page as a phone shows it, with a trained student and pictures it never saw; and how far its numbers are off.

    mobileclip export --student runs/demo/distill --data runs/demo/prepare --out runs/demo/page --config.bundle page
    python -m benchmarks.page_shot runs/demo/page --student runs/demo/distill --data runs/demo/prepare

Drives Chromium. Pictures are those of one artist, a few of each group. The page's embeddings are compared with
PyTorch's.
"""

import argparse
import itertools
import json
import tempfile
import threading
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from benchmarks import export_results
from mobileclip import manifest
from mobileclip.data import images
from mobileclip.data.preprocess import image_tensor
from mobileclip.data.shards import Sample, read_samples
from mobileclip.formats.bundle import serve
from mobileclip.models import zoo
from tests.page.browser import Browser, chromium

WIDTH, HEIGHT, SCALE = 390, 844, 2
PER_GROUP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", help="export folder")
    parser.add_argument("--student", required=True, help="output of distill")
    parser.add_argument("--data", required=True, help="prepared dataset")
    parser.add_argument("--image", default="float32", help="precision of the image program")
    parser.add_argument("--text", default="float32", help="precision of the text program")
    parser.add_argument("--about", action="store_true", help="show programs, self-test and credits")
    parser.add_argument("--query", default="a red heart")
    parser.add_argument("--labels", default="", help="comma-separated; empty = the groups of the pictures")
    parser.add_argument("--template", default="a picture of {}")
    parser.add_argument("--name", default="demo student", help="in the tables")
    parser.add_argument("--figure", default="docs/figures/page.png")
    parser.add_argument("--out", default="docs/export-results.jsonl", help="the row is appended there; empty = not")
    options = parser.parse_args()
    samples = draw(options.data)
    labels = options.labels or ", ".join(sorted({str(sample.metadata["group"]) for sample in samples}))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / f"{index:02d}.png" for index in range(len(samples))]
        for path, sample in zip(paths, samples, strict=True):
            path.write_bytes(sample.image)
        with serve.serving(Path(options.export)) as server, chromium(folder / "profile") as browser:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            browser.open(f"{serve.address(server)}?image={options.image}&text={options.text}")
            show(browser, paths, query=options.query, labels=labels, template=options.template, about=options.about)
            browser.screenshot(Path(options.figure))
            got = embeddings(browser, [options.query])
            server.shutdown()
    clip = zoo.load("trained:student", trained=options.student)
    cosines = compare(clip, samples, [options.query], got)
    row = {"student": options.name, "weights": clip.sha256[:12], "kind": "page", "pictures": len(samples), **cosines}
    print(json.dumps(row))
    if options.out:
        export_results.append(Path(options.out), row)


def draw(data: str) -> list[Sample]:
    """The first few test pictures of each group."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in read_samples(data, manifest.read(data), "test"):
        if group := sample.metadata.get("group"):
            groups[str(group)].append(sample)
    return list(itertools.chain.from_iterable(rows[:PER_GROUP] for _, rows in sorted(groups.items())))


def show(
    browser: Browser, paths: list[Path], *, query: str, labels: str, template: str, about: bool = False
) -> None:  # fmt: skip
    """Choose the pictures, search, and classify the best answer; with `about` the last part of the page is seen."""
    browser.size(WIDTH, HEIGHT, scale=SCALE)
    # Before it is ready the page listens to nothing.
    browser.evaluate("mobileclip.ready('image').then(() => mobileclip.ready('text')).then(() => null)", timeout=120)
    browser.put_files("#files", paths)
    browser.wait(f"mobileclip.state.pictures.filter((p) => p.features).length === {len(paths)}")
    for field, text in (("bank", ""), ("template", template), ("labels", labels), ("query", query)):
        browser.evaluate(
            f"(() => {{ const e = document.getElementById('{field}'); e.value = {json.dumps(text)};"
            "e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); })()"
        )
    browser.wait("document.querySelectorAll('#gallery .score').length > 0")
    browser.evaluate("document.querySelector('#gallery button')?.click()")
    browser.wait("document.querySelectorAll('#scores li').length > 1")
    browser.evaluate("scrollTo(0, 0)")
    whole = browser.evaluate("document.documentElement.scrollHeight")
    browser.size(WIDTH, min(int(whole), 2 * HEIGHT), scale=SCALE)
    browser.evaluate("new Promise((done) => setTimeout(() => done(null), 1500))")  # scrolling is smooth
    browser.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    if about:
        browser.evaluate("document.getElementById('about').open = true")
        browser.evaluate("document.getElementById('about').scrollIntoView({behavior: 'instant'})")


def embeddings(browser: Browser, texts: list[str]) -> dict[str, np.ndarray]:
    """The page's own."""
    pictures = browser.evaluate("mobileclip.state.pictures.map((p) => [...p.features])")
    rows = browser.evaluate(
        f"mobileclip.engine.encodeTexts({json.dumps(texts)}).then(({{ features }}) => [...features])"
    )  # fmt: skip
    return {"image": np.array(pictures, np.float32), "text": np.array(rows, np.float32).reshape(len(texts), -1)}


def compare(
    clip: zoo.Clip, samples: list[Sample], texts: list[str], got: dict[str, np.ndarray]
) -> dict[str, float]:  # fmt: skip
    """Smallest cosines with PyTorch's embeddings."""
    squashed = torch.stack([images.resize(images.decode(sample.image), clip.preprocess) for sample in samples])
    pictures = clip.encode_image(image_tensor(squashed, clip.preprocess)).numpy()
    return {
        "image_cosine": float((pictures * got["image"]).sum(1).min()),
        "text_cosine": float((clip.encode_text(texts).numpy() * got["text"]).sum(1).min()),
    }


if __name__ == "__main__":
    main()

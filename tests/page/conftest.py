"""One tiny student in a bundle with the page, and one browser that has it open."""

import dataclasses
import threading

import pytest

from mobileclip.formats import contract
from mobileclip.formats import contract_writer as terms
from mobileclip.formats.bundle import archive as bundle
from mobileclip.formats.bundle import golden_values as golden
from mobileclip.formats.bundle import prompt_bank, serve, tokenizer, web
from mobileclip.lineage import attribution
from mobileclip.manifest import Attribution
from tests.page.browser import chromium

IMAGE = ("float32", "float16", "int8_static", "int8_weights")
TEXT = ("float32", "float16", "int8", "int8_weights", "int4_weights")
ANN = "https://ann.example/drawings"
LABELS = ["stripes", "dots", "a face", "fog", "noise"]


@pytest.fixture(scope="session")
def clip():
    from tests.models.perturbed import perturbed_clip

    return perturbed_clip("tiny-mci")


@pytest.fixture(scope="session")
def bundled(clip, tmp_path_factory):
    """A bundle with every ONNX program, a prompt bank and the page; its proof is a few patterns."""
    # Random weights are round for no quantizer: what is asked here is whether the page computes what Python does.
    precisions = list(dict.fromkeys([*IMAGE, *TEXT]))
    folder = export(clip, tmp_path_factory.mktemp("export"), precisions=precisions, max_error_int8=1)
    return bundle.write(folder, tmp_path_factory.mktemp("bundle"), extra=web.members())


def export(clip, folder, **keys):
    """An export of these settings in `folder`, without the page."""
    from mobileclip.config import Export
    from mobileclip.formats import programs, proof
    from mobileclip.formats.towers import split
    from tests.formats.conftest import pattern_samples

    folder.mkdir(exist_ok=True)
    reference, section = proof.refer(clip, pattern_samples(6)), Export(**keys)
    written = programs.build(section, split(clip), reference, folder)
    classes = prompt_bank.embed(lambda texts: clip.encode_text(texts).numpy(), LABELS, ["a picture of {}"])
    bank, paths = prompt_bank.build(
        classes, reference.image_features, folder, name="textures", precision="int8", budget=1
    )
    paths += [golden.write(clip, folder, written), *tokenizer.write(clip.tokenizer, folder / tokenizer.FOLDER)]
    files = [contract.describe(path, root=folder) for path in paths]
    owed = [
        Attribution(kind="data", name="ann", license="CC-BY-4.0", attribution="Drawings by <b>Ann</b>.", url=ANN),
        Attribution(kind="teacher", name="first", license="MIT AND her-own"),
    ]
    clip = dataclasses.replace(clip, card=attribution.to_card(owed))
    agreed = terms.agree(clip, written, files, dataset_sha256="d" * 64, prompt_banks=[bank])
    (folder / contract.FILE_NAME).write_bytes(agreed.to_bytes())
    return folder


@pytest.fixture(scope="session")
def served(bundled):
    """Address of the page."""
    with serve.serving(bundled) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield serve.address(server)
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def page(served, tmp_path_factory):
    """The page, open and ready, in a browser that reaches nothing but this machine."""
    folder = tmp_path_factory.mktemp("browser")
    with chromium(folder / "profile", f"--log-net-log={folder / 'net.json'}") as browser:
        browser.net_log = folder / "net.json"
        browser.open(served)
        browser.size(390, 844)
        browser.evaluate("mobileclip.ready('image').then(() => mobileclip.ready('text')).then(() => null)")
        yield browser

"""Whom a model owes: its page where it is published, no path of this machine, and all its card records."""

import pytest

from mobileclip.lineage import attribution
from mobileclip.manifest import Attribution
from mobileclip.models import attributions as credit
from mobileclip.models import zoo

TOWER = Attribution(kind="weights", name="tower", license="CC-BY-4.0", attribution="by T")


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("hf-hub:somebody/small", "https://huggingface.co/somebody/small"),
        ("ViT-B-32/openai", "https://huggingface.co/timm/vit_base_patch32_clip_224.openai"),
        ("MobileCLIP-B-LT/datacompdr_lt", "https://huggingface.co/apple/MobileCLIP-B-LT-OpenCLIP"),
        ("MobileCLIP2-S0", "https://huggingface.co/apple/MobileCLIP2-S0"),
        ("ViT-B-32", ""), ("tiny-mci", ""), ("timm:a+b", ""),
    ],
)  # fmt: skip
def test_pages(name, page):
    assert credit.page(name) == page


def test_a_local_model_is_called_by_its_digest_and_tells_its_card(tmp_path):
    zoo.save(str(tmp_path), zoo.create("tiny-mci"), license="MIT", card=attribution.to_card([TOWER]))
    clip = zoo.load(f"local-dir:{tmp_path}")
    own, *rest = credit.attributions(clip, "weights")
    assert own == Attribution(kind="weights", name=f"weights {clip.sha256[:12]}", license="MIT")
    assert rest == [TOWER]
    named, *_ = credit.attributions(clip, "teacher", "first", license="own")
    assert (named.kind, named.name, named.license) == ("teacher", "first", "own")


def test_a_published_model_keeps_its_name():
    clip = zoo.create("tiny-mci")
    clip.name, clip.license = "ViT-B-32/openai", "MIT"
    (own,) = credit.attributions(clip, "teacher", "first")
    assert (own.name, own.license, own.url.rpartition("/")[2]) == (
        "ViT-B-32/openai",
        "MIT",
        "vit_base_patch32_clip_224.openai",
    )

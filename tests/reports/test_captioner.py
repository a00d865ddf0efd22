"""The captioner's page: complete, escaped, without requests, the same bytes again."""

import re

from mobileclip.reports.captioner import caption_page

SCORES = {
    "pretrain": {"caption_loss": 2.5, "cider": 0.125},
    "finetune": {
        "caption_loss": 1.25,
        "cider": 1.5,
        "bleu4": 33.0,
        "clip_score": 0.25,
        "degenerate": 0,
        "words/mean": 7,
    },
}
ROWS = [
    {
        "uid": "a", "picture": "data:image/webp;base64,AAAA", "alt_text": ["IMG <1>"], "references": ["a red cat"],
        "pretrain": {"greedy": "cat", "drawn": ["cat cat", "dog"]},
        "finetune": {"greedy": "a red cat & more", "drawn": ["a cat", "red"]},
    }
]  # fmt: skip


def test_scores_and_captions_are_there_and_escaped():
    page = caption_page(SCORES, ROWS, held_out=1234)
    for text in ("1,234", "2.500", "1.250", "33.000", "IMG &lt;1&gt;", "a red cat &amp; more", "after fine-tuning"):
        assert text in page
    assert "IMG <1>" not in page
    assert page.count("<li>") == 8
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert caption_page(SCORES, ROWS, held_out=1234) == page


def test_one_phase_alone():
    row = {key: value for key, value in ROWS[0].items() if key != "pretrain"}
    page = caption_page({"finetune": SCORES["finetune"]}, [row], held_out=1)
    assert "pre-training" not in page

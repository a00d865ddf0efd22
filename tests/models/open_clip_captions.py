"""CoCa models whose weights come from a frozen stream of numbers, and what open_clip's own `generate` writes with them.

`open_clip_captions.json` holds the tokens of open_clip 3.3.0 with transformers 4.56.2, the last pair of which
`generate` runs with beam search; `python -m tests.models.open_clip_captions` wrote it there.
"""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from mobileclip.models import zoo

RECORDED = Path(__file__).with_name("open_clip_captions.json")
START, PAD = 7, 9
CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": 64, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16, "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 40, "vocab_size": 600, "width": 64, "heads": 4, "layers": 2,
        "embed_cls": True, "output_tokens": True,
    },
    "multimodal_cfg": {"context_length": 40, "vocab_size": 600, "width": 64, "heads": 4, "layers": 2},
    "quick_gelu": True,
}  # fmt: skip
CUSTOM = {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}
CASES = [
    (name, seed, how, beams, groups, low, high)
    for name in ("plain", "custom")
    for seed in (0, 1, 2)
    for how, beams, groups, low, high in (
        ("greedy", 1, 1, 1, 24), ("greedy", 1, 1, 7, 12),
        ("beam", 2, 1, 1, 12), ("beam", 3, 1, 6, 10), ("beam", 4, 1, 2, 20), ("beam", 6, 3, 5, 20),
    )
]  # fmt: skip


def build(name: str, seed: int) -> torch.nn.Module:
    """A CoCa with weights from numpy's legacy generator, whose stream never changes; it looks and it stops."""
    config = deepcopy(CONFIG)
    if name == "custom":
        config["text_cfg"] |= {**CUSTOM, "ls_init_value": 0.5}
    model = zoo.build(config)
    numbers = np.random.RandomState(seed)
    with torch.no_grad():
        for key, value in sorted(model.state_dict().items()):
            drawn = torch.from_numpy(numbers.standard_normal(tuple(value.shape)).astype(np.float32))
            if value.ndim < 2:
                drawn = drawn * 0.1 + (1 if key.endswith(("weight", "gamma")) or "scale" in key else 0)
            else:
                drawn = drawn * (2.0 if "cross_attn" in key and "out_proj" in key else 1.0) / value.shape[-1] ** 0.5
            value.copy_(drawn)
        model.text_decoder.text_projection.mul_(1.5)
    return model.eval()


def images(seed: int, count: int = 3) -> torch.Tensor:
    """Coarse, strongly colored patterns float32 [count, 3, 64, 64]."""
    coarse = torch.from_numpy(
        np.random.RandomState(100 + seed).standard_normal((count, 3, 4, 4)).astype(np.float32) * 3
    )
    return coarse.repeat_interleave(16, 2).repeat_interleave(16, 3)


@torch.no_grad()
def greedy(model: torch.nn.Module, pixels: torch.Tensor, *, start: int, end: int, pad: int, low: int, high: int):
    """open_clip's greedy captions by definition: its own forward pass over the whole prefix, the likeliest token next.

    No end token before `low` tokens, an end token as the last of `high`; int64 [batch, high].
    """
    tokens = torch.full((len(pixels), 1), start)
    open_ = torch.ones(len(pixels), dtype=torch.bool)
    for length in range(1, high):
        logits = model(pixels, tokens, output_labels=False)["logits"][:, -1]
        if length < low:
            logits[:, end] = -torch.inf
        chosen = logits.argmax(-1) if length + 1 < high else torch.full((len(pixels),), end)
        chosen = torch.where(open_, chosen, pad)
        open_ &= (chosen != end) & (chosen != pad)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    return tokens


def record() -> None:
    """Ask open_clip."""
    found = []
    for name, seed, how, beams, groups, low, high in CASES:
        model, pixels = build(name, seed), images(seed)
        free = model.generate(pixels, generation_type="top_k", top_k=1, seq_len=14, min_seq_len=1, sot_token_id=START)
        end = int(free[0, 6])
        chosen = {"generation_type": "top_k", "top_k": 1}
        if how == "beam":
            chosen = {"generation_type": "beam_search", "num_beams": beams, "num_beam_groups": groups}
        tokens = model.generate(
            pixels, **chosen, seq_len=high, min_seq_len=low, fixed_output_length=True, sot_token_id=START,
            eos_token_id=end, pad_token_id=PAD,
        )  # fmt: skip
        found.append({"case": [name, seed, how, beams, groups, low, high], "end": end, "tokens": tokens.tolist()})
    RECORDED.write_text("[\n" + ",\n".join(json.dumps(row) for row in found) + "\n]\n")


if __name__ == "__main__":
    record()

"""Captioning speed: five captions per image by our decoder against five rounds of open_clip's way per batch.

    python -m benchmarks.bench_caption [--model coca_ViT-B-32] [--images 4] [--captions 5] [--lengths 30 15]

open_clip's way is what its `generate` does: one forward pass over the whole prefix for every token, one caption per
image and round. Both draw by top-p 0.9 (the settings of the public reference generator) from the same model with random
weights, one after the other in one run; `ratio` is of wall time, `CPU ratio` of CPU time, which other work on the
machine disturbs less. Random weights practically never end a caption, so every caption has the full length and the
token counts of both sides are equal; a trained model ends most captions of 30 tokens after 10 to 20, which the shorter
length stands for.
"""

import argparse
import statistics
import time
from typing import Any

import torch

from mobileclip.models import generation, zoo
from mobileclip.models.generation import Sampling

TOP_P = 0.9
MIN_TOKENS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="coca_ViT-B-32", help="CoCa architecture")
    parser.add_argument("--images", type=int, default=4, help="images per batch")
    parser.add_argument("--captions", type=int, default=5, help="captions per image")
    parser.add_argument("--lengths", type=int, nargs="+", default=[30, 15], help="tokens per caption")
    parser.add_argument("--repeats", type=int, default=2, help="measurements per row; the median counts")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    clip = zoo.create(options.model)
    size = clip.preprocess.size
    images = torch.randn(options.images, 3, size, size)
    print(
        f"{options.model}, random weights, {options.images} images x {options.captions} captions, top-p {TOP_P}, "
        f"{options.threads} thread(s), torch {torch.__version__}\n"
    )
    print("| length | open_clip, s | ours, s | open_clip, images/s | ours, images/s | tokens | ratio | CPU ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for length in options.lengths:
        print(measure(clip, images, options.captions, length, options.repeats), flush=True)


def measure(clip: zoo.Clip, images: torch.Tensor, captions: int, length: int, repeats: int) -> str:
    """One row of the table; the two sides alternate, so that a busy machine disturbs both."""
    sampling = Sampling("top_p", top_p=TOP_P, min_tokens=MIN_TOKENS, max_tokens=length)
    uids = [f"image-{index}" for index in range(len(images))]

    def theirs() -> int:
        outputs = [_prefix_by_prefix(clip.model, images, sampling) for _ in range(captions)]
        return sum(int((output != 0).sum()) for output in outputs)

    def ours() -> int:
        draws = torch.stack([_draws(uid, captions, length) for uid in uids])
        return int((generation.generate(clip.model, images, draws, sampling=sampling) != 0).sum())

    spent: dict[str, list[tuple[float, float]]] = {"theirs": [], "ours": []}
    tokens: dict[str, int] = {}
    for _ in range(repeats):
        for name, work in (("theirs", theirs), ("ours", ours)):
            start = time.perf_counter(), time.process_time()
            tokens[name] = work()
            spent[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    (slow, slow_cpu), (fast, fast_cpu) = (
        [statistics.median(column) for column in zip(*spent[name], strict=True)] for name in ("theirs", "ours")
    )
    count = len(images)
    return (
        f"| {length} | {slow:.2f} | {fast:.2f} | {count / slow:.2f} | {count / fast:.2f} | "
        f"{tokens['theirs']} / {tokens['ours']} | {slow / fast:.1f}x | {slow_cpu / fast_cpu:.1f}x |"
    )


@torch.no_grad()
def _prefix_by_prefix(model: Any, images: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """One caption per image, without caches."""
    latent, tokens_of_image = model._encode_image(images)  # noqa: SLF001 - open_clip has no other way to them
    specials = generation.Specials()
    tokens = torch.full((len(images), 1), specials.start)
    for length in range(1, sampling.max_tokens):
        given = {"image_latent": latent, "image_embs": tokens_of_image, "output_labels": False}
        logits = model(images, tokens, **given)["logits"][:, -1]
        if length < sampling.min_tokens:
            logits[:, specials.end] = -torch.inf
        drawn = torch.multinomial(generation.filtered(logits, sampling), 1)
        tokens = torch.cat([tokens, drawn], dim=1)
    return tokens


def _draws(uid: str, captions: int, length: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(generation.uniforms(0, uid, m, length)) for m in range(captions)])


if __name__ == "__main__":
    main()

"""Time per item of teacher, captioner and student on this machine, for `mobileclip plan --probe`."""

import time
from collections.abc import Callable

import numpy as np
import torch

from mobileclip.models import generation, zoo
from mobileclip.models.embed import embed_pixels, embed_texts
from mobileclip.planning.cost import PAPER, Rates

_TEXT = "a photo of a dog that runs over a green field in the morning sun"


def measure(
    *,
    teacher: str,
    student: str,
    captioner: str = "",
    batch: int = 16,
    seconds: float = 5.0,
) -> Rates:
    """Time the architectures with random weights, which compute what trained ones do.

    Args:
        teacher: Architecture by name.
        student: Architecture by name.
        captioner: CoCa architecture; empty = the paper's figure, scaled as the teacher's.
        batch: Items at once.
        seconds: Shortest time of each measurement [s].

    Raises:
        ConfigError: There is no such architecture.
    """
    torch.manual_seed(0)
    clip = zoo.create(teacher)
    pixels = torch.randint(0, 256, (batch, 3, clip.preprocess.size, clip.preprocess.size), dtype=torch.uint8)
    texts = [f"{_TEXT} {index}" for index in range(batch)]
    image = _per_item(lambda: embed_pixels(clip, pixels, batch_size=batch), batch, seconds)
    text = _per_item(lambda: embed_texts(clip, texts, batch_size=batch), batch, seconds)
    caption = _caption(captioner, batch, seconds) if captioner else PAPER.caption * image / PAPER.image
    named = f"teacher {teacher}, student {student}" + (f", captioner {captioner}" if captioner else "")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return Rates(image, text, caption, _step(student, batch, seconds), f"probe of this machine, {device}: {named}")


def _caption(name: str, batch: int, seconds: float) -> float:
    clip = zoo.create(name)
    device = next(clip.model.parameters()).device
    images = torch.randn(batch, 3, clip.preprocess.size, clip.preprocess.size, device=device)
    sampling = generation.Sampling("top_p", min_tokens=20, max_tokens=30)
    uids = [str(index) for index in range(batch)]

    def write() -> None:
        generation.write_captions(clip, images, uids, num_captions=1, sampling=sampling, seed=0)

    return _per_item(write, batch, seconds)


def _step(name: str, batch: int, seconds: float) -> float:
    clip = zoo.create(name)
    model = clip.model.train()
    device = next(model.parameters()).device
    images = torch.randn(batch, 3, clip.preprocess.size, clip.preprocess.size, device=device)
    tokens = clip.tokenizer([_TEXT] * batch).to(device)

    def step() -> None:
        image, text = model.encode_image(images), model.encode_text(tokens)  # type: ignore[operator]
        logits = image @ text.T
        torch.nn.functional.cross_entropy(logits, torch.arange(batch, device=device)).backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    return _per_item(step, batch, seconds)


def _per_item(work: Callable[[], object], items: int, seconds: float) -> float:
    """Median time per item [ms] of rounds that take `seconds` together, after one that is not counted."""
    work()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3 / items

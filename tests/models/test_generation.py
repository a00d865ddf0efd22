"""Captions against open_clip's forward pass and recorded tokens, transformers' filters and the definition of a draw."""

import json
from copy import deepcopy

import numpy as np
import open_clip
import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from mobileclip.errors import ConfigError
from mobileclip.models import beam, generation, zoo
from mobileclip.models.architectures import CONFIGS
from mobileclip.models.decoder import CachedDecoder
from mobileclip.models.generation import Sampling, Specials
from tests.models import open_clip_captions

TINY = json.loads((CONFIGS / "tiny-coca.json").read_text())
TINY["text_cfg"].pop("tokenizer_kwargs")  # CLIP's whole vocabulary here: open_clip's `generate` knows no other
for _part in ("text_cfg", "multimodal_cfg"):
    TINY[_part]["vocab_size"] = 49408
MIDDLE = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 256, "patch_size": 16, "output_tokens": True},
    "text_cfg": {
        "context_length": 40, "vocab_size": 4000, "width": 256, "heads": 8, "layers": 4,
        "embed_cls": True, "output_tokens": True,
    },
    "multimodal_cfg": {"context_length": 40, "vocab_size": 4000, "width": 256, "heads": 8, "layers": 4},
    "quick_gelu": True,
}  # fmt: skip
CUSTOM = {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _build(name: str, seed: int) -> torch.nn.Module:
    cfg = deepcopy(TINY if name.startswith("tiny") else MIDDLE)
    cfg.pop("custom_text", None)
    if name == "middle-custom":
        cfg["text_cfg"] |= CUSTOM
        cfg["text_cfg"]["ls_init_value"] = 0.5
    if name == "middle-no-cls":
        cfg["text_cfg"]["embed_cls"] = False
        cfg["multimodal_cfg"]["ls_init_value"] = 0.5
    torch.manual_seed(seed)
    model = zoo.build(cfg)
    for block in model.text_decoder.cross_attn:
        block.attn.out_proj.weight.data *= 5  # random weights hardly look at the image
    return model


def _images(count: int, seed: int = 0) -> torch.Tensor:
    """Coarse, strongly colored patterns: noise all looks the same to random weights."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 3
    return coarse.repeat_interleave(16, 2).repeat_interleave(16, 3)


def _no_draws(images: torch.Tensor, length: int, captions: int = 1) -> torch.Tensor:
    return torch.zeros(len(images), captions, length, dtype=torch.float64)


@pytest.fixture(scope="module")
def captioner() -> zoo.Clip:
    torch.manual_seed(0)
    return zoo.create("tiny-coca")


@pytest.mark.parametrize(
    ("name", "seed", "low", "high"),
    [
        ("tiny", 0, 1, 24), ("tiny", 1, 6, 24), ("tiny", 2, 7, 12),
        ("middle", 0, 1, 24), ("middle", 1, 6, 24), ("middle", 2, 7, 12),
        ("middle-custom", 0, 1, 24), ("middle-custom", 1, 6, 24), ("middle-custom", 2, 7, 12),
    ],
)  # fmt: skip
def test_greedy_equals_the_full_forward(name, seed, low, high):
    model, images = _build(name, seed), _images(5, seed)
    # Random weights hardly ever end a caption: let tokens they do write mid-way stand for the end and for padding.
    free = open_clip_captions.greedy(model, images, start=7, end=-1, pad=model.pad_id, low=0, high=14)
    specials = Specials(start=7, end=int(free[0, 7]), pad=int(free[3, 9]))
    theirs = open_clip_captions.greedy(model, images, **vars(specials), low=low, high=high)
    sampling = Sampling("greedy", min_tokens=low, max_tokens=high)
    ours = generation.generate(model, images, _no_draws(images, high, 3), sampling=sampling, specials=specials)
    assert len({(row == specials.pad).sum().item() for row in theirs}) > 1  # captions of different lengths
    for caption in ours.unbind(1):
        assert torch.equal(caption, theirs)


RECORDED = json.loads(open_clip_captions.RECORDED.read_text())


@pytest.mark.parametrize("row", RECORDED, ids=["-".join(map(str, row["case"])) for row in RECORDED])
def test_tokens_are_those_that_open_clip_wrote(row):
    name, seed, how, beams, groups, low, high = row["case"]
    images = open_clip_captions.images(seed)
    specials = Specials(open_clip_captions.START, row["end"], open_clip_captions.PAD)
    # open_clip's beam groups all find the same: its default of 6 beams in 3 groups is a search with 2 beams.
    method, beams = ("greedy", 2) if how == "greedy" else ("beam_logits", beams // groups)
    sampling = Sampling(method, min_tokens=low, max_tokens=high, num_beams=beams)
    ours = generation.generate(
        open_clip_captions.build(name, seed), images, _no_draws(images, high), sampling=sampling, specials=specials
    )
    assert ours[:, 0].tolist() == row["tokens"]


class TestBeamSearchByDefinition:
    """On a vocabulary of five words every caption can be scored, so the likeliest are known."""

    SPECIALS, LONGEST = (0, 1, 2), 5

    class Decoder:
        """Next-token logits from a table by the whole prefix; one image."""

        device = torch.device("cpu")

        def __init__(self, seed: int, beams: int) -> None:
            self.seed, self.prefixes = seed, [() for _ in range(beams)]

        def step(self, tokens: torch.Tensor) -> torch.Tensor:
            self.prefixes = [(*prefix, int(token)) for prefix, token in zip(self.prefixes, tokens, strict=True)]
            return torch.stack([self.logits(prefix) for prefix in self.prefixes])

        def reorder(self, rows: torch.Tensor) -> None:
            self.prefixes = [self.prefixes[row] for row in rows]

        def logits(self, prefix: tuple[int, ...]) -> torch.Tensor:
            numbers = np.random.RandomState([self.seed, *prefix])
            # The offset differs between prefixes: it changes no probability, and every sum of logits.
            return torch.from_numpy(numbers.standard_normal(5) * 1.5 + 5 * numbers.standard_normal()).float()

    def _all(self, decoder: Decoder, low: int) -> dict[tuple[int, ...], float]:
        """Mean log-probability of every caption, ended or as long as can be."""
        found, open_ = {}, {(0,): 0.0}
        for length in range(1, self.LONGEST):
            grown = {}
            for prefix, total in open_.items():
                for token, gain in enumerate(decoder.logits(prefix).log_softmax(-1).tolist()):
                    if token == 1 and length >= low:
                        found[*prefix, 1] = (total + gain) / length
                    elif token != 1:
                        grown[*prefix, token] = total + gain
            open_ = grown
        return found | {prefix: total / (self.LONGEST - 1) for prefix, total in open_.items()}

    @pytest.mark.parametrize("low", [1, 3])
    @pytest.mark.parametrize("seed", range(20))
    def test_wide_beams_find_the_likeliest_captions(self, seed, low):
        beams = 4**4  # as many as there are open captions: nothing is ever dropped
        decoder = self.Decoder(seed, beams)

        def widened(tokens: torch.Tensor) -> torch.Tensor:
            logits = self.Decoder.step(decoder, tokens)
            return torch.cat([logits, torch.full((beams, 2 * beams), -1e4)], dim=1)  # a top-k of 2 * beams needs them

        decoder.step = widened
        found = beam.search(
            decoder, batch=1, captions=3, beams=beams, lengths=(low, self.LONGEST), specials=self.SPECIALS
        )
        scored = self._all(self.Decoder(seed, 1), low)
        wanted = sorted(scored, key=lambda caption: -scored[caption])[:3]
        assert [tuple(row[: len(best)]) for row, best in zip(found[0].tolist(), wanted, strict=True)] == wanted

    def test_offsets_of_logits_change_open_clips_search_alone(self):
        """Adding a number to all logits of a step changes no probability."""

        class Moved(self.Decoder):
            def logits(self, prefix: tuple[int, ...]) -> torch.Tensor:
                return super().logits(prefix) + 7 * len(prefix)

        same = {}
        for add_logits in (False, True):
            results = [
                [
                    beam.search(
                        kind(seed, 2), batch=1, captions=1, beams=2, lengths=(1, 5), specials=self.SPECIALS,
                        add_logits=add_logits,
                    ).tolist()
                    for seed in range(20)
                ]
                for kind in (self.Decoder, Moved)
            ]  # fmt: skip
            same[add_logits] = results[0] == results[1]
        assert same == {False: True, True: False}


@pytest.mark.parametrize("name", ["tiny", "middle", "middle-custom", "middle-no-cls"])
def test_cached_logits_equal_the_full_forward(name):
    model = _build(name, 0).double()
    images = _images(3).double()
    length = model.context_length  # the whole context: open_clip cannot read a shorter text without a class token
    text = torch.randint(1, 4000, (6, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        image_tokens = model._encode_image(images)[1]
        decoder = CachedDecoder(model, image_tokens, captions=2, max_tokens=length)
        steps = torch.stack([decoder.step(text[:, position]) for position in range(length)], dim=1)
        full = model(images.repeat_interleave(2, 0), text, output_labels=False)["logits"]
    assert (steps - full).abs().max() < 1e-12 * full.abs().max()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(
    ("sampling", "warper"),
    [(Sampling("top_p", top_p=p), TopPLogitsWarper(p)) for p in (0.01, 0.5, 0.9, 0.999)]
    + [(Sampling("top_k", top_k=k), TopKLogitsWarper(k)) for k in (1, 5, 50)],
    ids=["p0.01", "p0.5", "p0.9", "p0.999", "k1", "k5", "k50"],  # objects' addresses would differ between workers
)
def test_filter_gives_open_clips_distribution(sampling, warper, temperature):
    logits = torch.randn(16, 3000, generator=torch.Generator().manual_seed(0)) * 4
    expected = (warper(None, logits.clone()) / temperature).softmax(-1)
    ours = generation.filtered(logits, Sampling(**{**vars(sampling), "temperature": temperature}))
    ours = ours / ours.sum(-1, keepdim=True)
    assert torch.allclose(ours, expected, atol=1e-6)
    assert torch.equal(ours > 0, expected > 0)


def test_filter_with_whole_mass_drops_nothing():
    logits = torch.randn(4, 100)
    assert (generation.filtered(logits, Sampling("top_p", top_p=1.0)) > 0).all()


def test_filter_keeps_ties():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, -9.0]])
    assert (generation.filtered(logits, Sampling("top_k", top_k=2))[0] > 0).tolist() == [True] * 4 + [False]


def test_draw_is_the_inverse_cdf():
    weights = torch.tensor([0.0, 1.0, 0.0, 2.0, 5.0, 0.0])
    uniform = torch.arange(800, dtype=torch.float64) / 800
    drawn = generation.draw(weights.expand(800, -1), uniform)
    assert torch.bincount(drawn, minlength=6).tolist() == [0, 100, 0, 200, 500, 0]
    last = torch.tensor([1 - 2**-32], dtype=torch.float64)
    assert generation.draw(weights[None], last).tolist() == [4]


def test_sampled_shares_match_the_model(captioner):
    """The second token of 900 captions of one image follows the model's own top-k distribution."""
    image, sampling = _images(1), Sampling("top_k", top_k=3, min_tokens=1, max_tokens=3)
    draws = torch.from_numpy(np.stack([[generation.uniforms(0, "x", m, 3) for m in range(900)]]))
    specials = generation.specials_of(captioner)
    second = generation.generate(captioner.model, image, draws, sampling=sampling, specials=specials)[0, :, 1]
    with torch.no_grad():
        logits = captioner.model(image, torch.tensor([[specials.start]]), output_labels=False)["logits"][0, -1]
    top = logits.topk(3)
    shares = torch.tensor([(second == token).float().mean() for token in top.indices])
    assert torch.allclose(shares, top.values.softmax(-1), atol=0.05)


def test_uniforms_depend_on_seed_uid_and_index_alone():
    base = generation.uniforms(0, "cat", 0, 30)
    assert base.shape == (30,)
    assert base.min() >= 0
    assert base.max() < 1
    assert np.array_equal(base[:10], generation.uniforms(0, "cat", 0, 10))
    others = [(1, "cat", 0), (0, "dog", 0), (0, "cat", 1)]
    assert all(not np.isclose(base, generation.uniforms(*other, 30)).any() for other in others)
    many = np.concatenate([generation.uniforms(0, str(uid), 0, 30) for uid in range(2000)])
    assert abs(many.mean() - 0.5) < 0.005
    assert abs(many.var() - 1 / 12) < 0.002


@pytest.mark.parametrize("method", ["top_p", "top_k", "greedy"])
def test_captions_do_not_depend_on_the_batch(captioner, method):
    images, uids = _images(6), [f"uid{i}" for i in range(6)]
    sampling = Sampling(method, max_tokens=12)

    def write(order: list[int], size: int, captions: int = 5) -> dict[str, list[str]]:
        found = {}
        for start in range(0, len(order), size):
            part = order[start : start + size]
            texts = generation.write_captions(
                captioner, images[part], [uids[i] for i in part], num_captions=captions, sampling=sampling, seed=3
            )
            found.update({uids[i]: text for i, text in zip(part, texts, strict=True)})
        return found

    whole = write(list(range(6)), 6)
    assert len({text for texts in whole.values() for text in texts}) >= 2
    for size in (1, 4):
        assert write(list(range(6)), size) == whole
    assert write([5, 3, 0, 1, 2, 4], 3) == whole


def test_captions_differ_between_indices_and_seeds(captioner):
    images, sampling = _images(1), Sampling("top_p", max_tokens=12)
    first, second = (
        generation.write_captions(captioner, images, ["a"], num_captions=5, sampling=sampling, seed=seed)[0]
        for seed in (0, 1)
    )
    assert len(set(first)) == 5
    assert not set(first) & set(second)


def test_text_is_cut_at_special_tokens_and_keeps_full_stops(captioner):
    tokenizer, specials = captioner.tokenizer, generation.specials_of(captioner)
    start, end = specials.start, specials.end
    words = tokenizer.encode("A red apple. It is   ripe!")

    def text(*tokens: int) -> str:
        return generation.to_text(tokens, tokenizer, specials)

    assert text(start, *words, end, *words).replace(" .", ".").replace(" !", "!") == "a red apple. it is ripe!"
    assert text(start, end, 0, 0) == ""
    short = tokenizer.encode("a red")
    assert text(start, *short, start, *words) == "a red"
    assert text(start, *short, 0, *words) == "a red"
    assert text(start, *short, 60_000) == "a red"  # an output row without a word


def test_text_drops_bytes_that_are_no_text(captioner):
    tokenizer, specials = captioner.tokenizer, generation.specials_of(captioner)
    lone = [token for token, piece in tokenizer.decoder.items() if piece == tokenizer.byte_encoder[0xC3]]
    control = [token for token, piece in tokenizer.decoder.items() if piece == tokenizer.byte_encoder[0x00]]
    assert lone
    assert control
    tokens = [specials.start, *lone, *control, *tokenizer.encode("cat")]
    assert generation.to_text(tokens, tokenizer, specials) == "cat"


def test_models_that_cannot_be_decoded_are_refused(captioner):
    longest = captioner.model.context_length
    sampling = Sampling(max_tokens=longest)
    generation.check(captioner, sampling)
    with pytest.raises(ConfigError, match=r"^model: 'tiny-mci' is .*, want a CoCa"):
        generation.check(zoo.create("tiny-mci"), sampling)
    with pytest.raises(ConfigError, match=rf"^max_tokens: got {longest + 1}, 'tiny-coca' takes at most {longest}\.$"):
        generation.check(captioner, Sampling(max_tokens=longest + 1))
    with pytest.raises(ConfigError, match=r"^min_tokens: got 20"):
        generation.check(captioner, Sampling(min_tokens=20, max_tokens=20))
    config = deepcopy(TINY)
    config.pop("custom_text")
    config["text_cfg"]["no_causal_mask"] = True
    both_ways = zoo.Clip(open_clip.CoCa(**config), captioner.preprocess, captioner.tokenizer, config, "x", "", "")
    with pytest.raises(ConfigError, match="not causal"):
        generation.check(both_ways, sampling)

"""Training a CoCa captioner: contrastive plus captioning loss (Yu et al., arXiv 2205.01917), and its held-out loss.

The loss is open_clip's `CoCaLoss`, computed at less cost: the vocabulary's matrix product, by far the largest, is done
only where there is a word to predict, and the multimodal decoder stops at the batch's longest caption. Both decoders
are causal, so what is left out changes nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mobileclip.config import Training
from mobileclip.data.loader import PairDataset
from mobileclip.data.preprocess import image_tensor
from mobileclip.manifest import Manifest
from mobileclip.models.zoo import Clip
from mobileclip.training.contrastive import batch_source, checkpoints, run_key, set_grad_checkpointing
from mobileclip.training.frozen import FrozenTrunk
from mobileclip.training.locked import drop
from mobileclip.training.loop import Batch, Objective, Report, Result, train
from mobileclip.training.losses import clip_loss
from mobileclip.training.objective import Features, Halves, Losses
from mobileclip.training.validation import held_out_pairs
from mobileclip.training.world import World, join


def train_captioner(
    clip: Clip,
    dataset: PairDataset,
    config: Training,
    *,
    caption_weight: float,
    contrastive_weight: float,
    seed: int,
    key: Mapping[str, Any],
    folder: str,
    title: str,
    validate: Callable[[], dict[str, float]] | None = None,
    report: Report | None = None,
    frozen: FrozenTrunk | None = None,
) -> Result:
    """Train a CoCa in place.

    Args:
        clip: A CoCa.
        dataset: Image-text pairs.
        config: Length and step size.
        caption_weight: Weight of the captioning loss.
        contrastive_weight: Weight of the contrastive loss; at 0 it is not computed.
        seed: Seed of the order.
        key: All that decides the result, for the checkpoint.
        folder: Checkpoint folder.
        title: Name of the run.
        validate: Scores at every point of the curve.
        report: Gets the points of the curve as they come.
        frozen: What the frozen image trunk sees: it is not run, and pictures are whole.
    """
    world = join()
    total = config.batch_size
    if frozen is None:
        source = batch_source(dataset, config, seed, world)
    else:
        total = min(total, len(dataset))
        source = frozen.source(dataset, total=total, own=world.rows(total), seed=seed)
    objective = coca_objective(
        clip, world, total=total, caption_weight=caption_weight, contrastive_weight=contrastive_weight,
        dropout=frozen.dropout if frozen is not None else 0.0, compiled=config.compile,
    )  # fmt: skip
    if config.grad_checkpointing:
        set_grad_checkpointing(clip.model)
    return train(
        clip.model, objective, source, config,
        key=run_key(key, config, title), folder=checkpoints(folder), title=title, total=total,
        validate=validate, report=report,
    )  # fmt: skip


def coca_objective(
    clip: Clip, world: World, *, total: int, caption_weight: float, contrastive_weight: float, dropout: float = 0.0,
    compiled: bool = False,
) -> Objective:  # fmt: skip
    """The captioner's loss in two halves.

    Args:
        clip: A CoCa.
        world: The processes that share a batch.
        total: Rows of the whole batch.
        caption_weight: Weight of the captioning loss.
        contrastive_weight: Weight of the contrastive loss; at 0 it is not computed.
        dropout: Share of a frozen trunk's `features` that is dropped in training.
        compiled: Compile both towers; the multimodal decoder, whose length changes from batch to batch, is not.

    Returns:
        Of batches with `image` uint8 [batch, 3, size, size], or `features` [batch, places, channels] of a frozen trunk,
        and `text` int64 [batch, context]; its losses are `loss`
        (weighted sum), `caption` (cross-entropy per token in nats, padding ignored), `contrastive`.
    """
    model: Any = clip.model
    encode_image, encode_text = model._encode_image, model._encode_text  # noqa: SLF001 - the only way to the tokens
    if compiled:
        encode_image, encode_text = torch.compile(encode_image), torch.compile(encode_text)

    def see(batch: Batch) -> tuple[Tensor, Tensor]:
        """Unit-norm embedding and tokens, from pixels or from what the frozen trunk saw in them."""
        if "features" not in batch:
            return encode_image(image_tensor(batch["image"], clip.preprocess))  # type: ignore[no-any-return]
        embedding, tokens = model.visual.from_features(drop(batch["features"], dropout, training=model.training))
        return functional.normalize(embedding, dim=-1), tokens

    def encode(batch: Batch) -> Features:
        image_features, image_tokens = see(batch)
        text_features, text_tokens = encode_text(batch["text"])
        summed, _ = caption_loss(model, image_tokens, text_tokens, batch["text"])
        found = {"caption": summed.reshape(1)}  # one row per part of the batch
        return found | ({"image": image_features, "text": text_features} if contrastive_weight else {})

    def criterion(features: Features, batch: Batch) -> Losses:
        words = (batch["text"][:, 1:] != model.pad_id).sum()
        caption = features["caption"].sum() / world.sum(words)
        losses = {"loss": caption_weight * caption, "caption": caption}
        if contrastive_weight:
            image, text = (world.gather(features[name], total) for name in ("image", "text"))
            rows = None if world.size == 1 else world.rows(total)
            losses["contrastive"] = clip_loss(image, text, model.logit_scale.exp(), rows=rows)
            losses["loss"] = losses["loss"] + contrastive_weight * losses["contrastive"]
        return losses

    return Halves(encode, criterion)


def caption_loss(model: Any, image_tokens: Tensor, text_tokens: Tensor, text: Tensor) -> tuple[Tensor, int]:
    """Teacher-forced cross-entropy of the next token, summed, and the number of tokens.

    Args:
        model: open_clip `CoCa`.
        image_tokens: [batch, image tokens, width] of the image tower.
        text_tokens: [batch, context, width] of the unimodal text tower.
        text: int64 [batch, context]; padding is not predicted.
    """
    labels = text[:, 1:]
    known = labels != model.pad_id
    length = int(known.any(dim=0).nonzero().max()) + 1
    labels, known = labels[:, :length], known[:, :length]
    decoder = model.text_decoder
    x, mask = text_tokens[:, :length], decoder.attn_mask[:length, :length]

    def layer(block: Any, cross: Any, x: Tensor) -> Tensor:
        return cross(block(x, attn_mask=mask), k_x=image_tokens, v_x=image_tokens)  # type: ignore[no-any-return]

    for pair in zip(decoder.resblocks, decoder.cross_attn, strict=True):
        # The decoder's own forward, which would look at this, is not called.
        x = checkpoint(layer, *pair, x, use_reentrant=False) if decoder.grad_checkpointing else layer(*pair, x)
    logits = decoder.ln_final(x)[known] @ decoder.text_projection
    return functional.cross_entropy(logits, labels[known], reduction="sum"), int(known.sum())


def caption_validation(
    clip: Clip, folder: str, manifest: Manifest, *, caption_field: str, limit: int = 500, batch_size: int = 64
) -> Callable[[], dict[str, float]] | None:
    """A function that gives the held-out caption loss; `None` where the validation split has no such captions.

    Returns:
        `caption_loss`: cross-entropy per token in nats over at most `limit` pairs, whole pictures.
    """
    pairs = held_out_pairs(clip, folder, manifest, caption_field=caption_field, limit=limit)
    if pairs is None:
        return None
    pixels, texts = (torch.split(whole, batch_size) for whole in pairs)

    @torch.no_grad()
    def score() -> dict[str, float]:
        model: Any = clip.model
        total, count = 0.0, 0
        device = next(model.parameters()).device
        for image, text in ((i.to(device), t.to(device)) for i, t in zip(pixels, texts, strict=True)):
            image_tokens = model._encode_image(image_tensor(image, clip.preprocess))[1]  # noqa: SLF001
            text_tokens = model._encode_text(text)[1]  # noqa: SLF001
            summed, tokens = caption_loss(model, image_tokens, text_tokens, text)
            total, count = total + float(summed), count + tokens
        return {"caption_loss": total / count}

    return score

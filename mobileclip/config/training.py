"""Sections of the stages that train: teachers, captioner, student."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from mobileclip.config.base import Name, Section, Share

Decay = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Section):
    """AdamW with linear warm-up, an optional plateau, and cosine decay."""

    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    lr_end: NonNegativeFloat = 1e-6
    """Learning rate at the last step."""
    warmup_steps: NonNegativeInt = 1000
    """Steps of linear warm-up from zero."""
    constant_steps: NonNegativeInt = 0
    """Steps at the peak rate between warm-up and decay."""
    weight_decay: NonNegativeFloat = 0.2
    """Decoupled weight decay; never applied to norms, biases and the logit scale."""
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.95
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Denominator floor."""
    grad_clip: NonNegativeFloat = 1.0
    """Largest gradient norm; 0 = no clipping."""


class Training(Section):
    """How long and on how much one model is trained."""

    steps: PositiveInt = 30_000
    """Optimizer steps."""
    batch_size: PositiveInt = 8192
    """Samples per step, over all processes."""
    optimizer: Optimizer = Optimizer()
    """Step size and its schedule."""
    accumulate: PositiveInt = 1
    """Parts in which a process works through its rows; more need less memory and one more forward pass."""
    ema_decay: Decay = 0.0
    """Decay of the running mean of the weights that is saved; 0 = save the weights themselves."""
    keep_weights: Literal["last", "best"] = "last"
    """Weights that are saved: the last, or those of the point with the best validation score."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast type of the towers; the loss is always computed in float32. float16 scales the gradients."""
    global_batch_norm: bool = True
    """Batch normalization over the rows of all processes; off = each process its own. One process: no difference."""
    grad_checkpointing: bool = False
    """Keep fewer activations and compute them again in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the towers with torch.compile: faster after a start of minutes, rounds differently."""
    workers: NonNegativeInt = 2
    """Loader processes; 0 = load in the training process. Does not change any result."""
    log_every: PositiveInt = 50
    """Steps between two points of the learning curve."""
    checkpoint_every: NonNegativeInt = 1000
    """Steps between two checkpoints; 0 = none. They are removed when the stage is complete."""
    keep_checkpoints: PositiveInt = 1
    """Newest checkpoints that are kept while the training runs."""
    resume: Literal["auto", "never"] = "auto"
    """auto = go on from the newest whole checkpoint of the same run; never = start anew."""


class Teacher(Section):
    """One CLIP teacher to train."""

    name: Name = "teacher"
    """Name by which later stages call it: `trained:NAME`."""
    model: str = "tiny-resnet"
    """Architecture (`mobileclip models`), or weights to fine-tune as `hf-hub:...` or `local-dir:...`."""
    pretrained: str = ""
    """open_clip weights tag, or a weights file, to fine-tune; empty = from scratch, for an architecture."""
    start_share: Share = 0.0
    """Share of the starting weights in the saved ones (WiSE-FT); keeps zero-shot ability when fine-tuning."""
    image_weights: str = ""
    """Image trunk weights (.safetensors) inside the `towers` input; empty = from scratch."""
    text_weights: str = ""
    """Hugging Face text model folder inside the `towers` input; empty = from scratch."""
    lock: bool = False
    """Freeze both pretrained towers and train the projections alone on cached features (locked tuning)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the cached features dropped at every step of locked tuning: else few pictures are learned by heart."""
    training: Training = Training()
    """Length and step size."""

    @model_validator(mode="after")
    def _check_keys(self) -> "Teacher":
        if self.dropout and not self.lock:
            raise ValueError("dropout is above 0 and lock is off, but only cached features are dropped")
        _check_start(self.start_share, self.model, self.pretrained or self.image_weights or self.text_weights)
        return self


class TrainTeacher(Section):
    """Train in-domain CLIP teachers; skipped when `teachers` is empty."""

    teachers: list[Teacher] = []
    """Teachers, trained one after the other."""
    captions: Annotated[list[Name], Field(min_length=1)] = ["captions"]
    """Caption fields of the samples to learn from; one is drawn per sample and step."""
    seed: NonNegativeInt = 0
    """Seed of weights, order and augmentation."""


class FinetuneCaptioner(Section):
    """Pre-train a CoCa captioner on the alt text, then fine-tune it on better captions."""

    enabled: bool = True
    """Off: nothing is trained, and `caption.model` names a captioner that is there."""
    model: str = "tiny-coca"
    """CoCa: an architecture (open_clip's or the project's own), or weights as `hf-hub:...` or `local-dir:...`."""
    pretrained: str = ""
    """open_clip weights tag to start from; empty = from scratch, for an architecture."""
    context_length: Annotated[int, Field(ge=0, le=1024)] = 0
    """Longest caption it can read and write in tokens, start and end included; 0 = the model's own."""
    image_weights: str = ""
    """Weights of a timm image trunk (.safetensors) inside the `towers` input; empty = from scratch."""
    lock: bool = False
    """Freeze the image trunk and learn from what it sees in whole pictures, computed once."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of what a frozen trunk sees that is dropped at every step."""
    pretrain_field: Name = "captions"
    """Caption field of the pre-training."""
    pretrain: Training = Training()
    """Pre-training length; skipped when the model comes with weights."""
    finetune_field: Name = "captions"
    """Caption field of the fine-tuning; samples that lack it are left out."""
    finetune: Training = Training()
    """Fine-tuning length."""
    caption_weight: NonNegativeFloat = 2.0
    """Weight of the captioning loss (CoCa: 2)."""
    contrastive_weight: NonNegativeFloat = 1.0
    """Weight of the contrastive loss (CoCa: 1)."""
    held_out_samples: PositiveInt = 500
    """Validation samples that are captioned and scored (CIDEr, BLEU, CLIP score) before and after the fine-tuning:
    after the pre-training, or as the given weights write them."""
    seed: NonNegativeInt = 0
    """Seed of weights, order and augmentation."""

    @model_validator(mode="after")
    def _check_weights(self) -> "FinetuneCaptioner":
        if self.caption_weight + self.contrastive_weight == 0:
            raise ValueError("caption_weight and contrastive_weight are both 0, want one above 0")
        return self

    @model_validator(mode="after")
    def _check_keys(self) -> "FinetuneCaptioner":
        if 0 < self.context_length < 8:
            raise ValueError(f"context_length is {self.context_length}, want 0 or at least 8")
        if self.dropout and not self.lock:
            raise ValueError("dropout is above 0 and lock is off, but only what a frozen trunk sees is dropped")
        return self


class Distill(Section):
    """Train a student on a reinforced dataset."""

    model: str = "tiny-mci"
    """Student: an open_clip name or one of the project's own (`mobileclip models`)."""
    pretrained: str = ""
    """open_clip weights tag, or a weights file, to start from; empty = from scratch."""
    start_share: Share = 0.0
    """Share of the starting weights in the saved ones (WiSE-FT); keeps zero-shot ability when fine-tuning."""
    distill_weight: Share = 1.0
    """Lambda: share of the distillation loss; the CLIP loss has the rest."""
    affinity: Literal["softmax", "sigmoid"] = "softmax"
    """Loss of both terms: softmax over the batch (CLIP), or sigmoid of every pair (SigLIP; adds a logit bias)."""
    divergence: Literal["kl", "cross_entropy"] = "kl"
    """Distillation: mean KL per teacher, or cross-entropy of the averaged probabilities; the gradients are equal."""
    teacher_biases: list[float] = []
    """Per teacher, bias of its scaled cosines in sigmoid distillation; empty = -10 for each."""
    feature_weight: NonNegativeFloat = 0.0
    """Weight of the distance of projected student features from the teachers' own; 0 = not computed."""
    feature_distance: Literal["cosine", "mse"] = "cosine"
    """Distance of features: 1 - cosine, or squared Euclidean."""
    bank_weight: NonNegativeFloat = 0.0
    """Weight of the affinities to a bank of stored teacher embeddings (SEED); 0 = not computed."""
    bank_size: PositiveInt = 4096
    """Most images, and most texts, in the bank: columns of these affinities."""
    synthetic: list[Name] = ["coca"]
    """Caption columns used beside the ground truth; empty = ground truth alone."""
    caption_use: Literal["sum", "mix"] = "sum"
    """sum = a loss for the ground truth plus one for a synthetic caption; mix = one of both, half the text cost."""
    synthetic_share: Share = 0.5
    """Probability of the synthetic caption where captions are mixed."""
    choice: Literal["random", "sequential"] = "random"
    """Which view and captions of a sample an epoch takes: drawn from the seed, or one after the other."""
    extra_augment_ops: Annotated[int, Field(ge=0, le=2)] = 0
    """RandAugment operations on the student's side alone, after the stored view."""
    extra_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of these operations (bin of RandAugment's table, 0-30)."""
    caption_field: Name = "captions"
    """Ground-truth caption field."""
    teachers: list[Name] = []
    """Teachers to learn from, by column name; empty = the calibrated ensemble, else all in the manifest."""
    online_teachers: bool = False
    """Run the teachers in every step instead of reading their stored embeddings: many times the cost, to compare."""
    selection: bool = True
    """Train on the pairs the filter kept, where the manifest has a selection."""
    training: Training = Training()
    """Length and step size."""
    control: bool = False
    """Also train the plain-CLIP control: same student, steps, batches and views, ground-truth captions, lambda 0."""
    control_lr: NonNegativeFloat = 0.0
    """Peak learning rate of the control, whose best one may be another than the student's; 0 = the student's."""
    seed: NonNegativeInt = 0
    """Seed of weights, order and draws."""

    @model_validator(mode="after")
    def _check_keys(self) -> "Distill":
        if self.caption_use == "mix" and not self.synthetic:
            raise ValueError("caption_use is 'mix' and synthetic is empty, want a caption column to mix in")
        if self.teacher_biases and self.affinity == "softmax":
            raise ValueError("teacher_biases are given and affinity is 'softmax', but only 'sigmoid' has biases")
        _check_start(self.start_share, self.model, self.pretrained)
        return self


def _check_start(share: float, model: str, pretrained: str) -> None:
    if share and not pretrained and not model.startswith(("hf-hub:", "local-dir:")):
        raise ValueError(f"start_share is {share:g} and '{model}' starts from scratch, want weights whose share stays")

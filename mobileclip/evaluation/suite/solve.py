"""Put the questions of one task to a model: embed its pictures and texts, and score the answers by the task's kind."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from mobileclip.data.images import decode, resize
from mobileclip.data.progress import progress_bar
from mobileclip.errors import DataError
from mobileclip.evaluation import zero_shot
from mobileclip.evaluation.features import Features, text_features
from mobileclip.evaluation.retrieval import similarities
from mobileclip.evaluation.suite import faces as suite_faces
from mobileclip.evaluation.suite import scores as suite_scores
from mobileclip.evaluation.suite.class_cache import class_embeddings
from mobileclip.evaluation.suite.data import Item, Source
from mobileclip.evaluation.suite.scores import Scored
from mobileclip.models.embed import embed_pixels
from mobileclip.models.zoo import Clip

_NAME = "model"


def score(clip: Clip, source: Source, *, batch_size: int, cache: str) -> tuple[Scored, str]:
    """One task's numbers, and the digest of what was asked: prompts, pictures and right answers.

    Args:
        clip: The model.
        source: The task.
        batch_size: Pictures per forward pass.
        cache: Folder or URI for class embeddings.
    """
    solve = {
        "classification": _classification, "retrieval": _retrieval, "association": _association, "choice": _choice,
        "faces": _faces,
    }[source.task.kind]  # fmt: skip
    images, kept, asked = _embed(clip, source, batch_size)
    return solve(Job(clip, source, batch_size, cache), images, kept), asked


@dataclass(frozen=True)
class Job:
    """What a task is solved with: see `score`."""

    clip: Clip
    source: Source
    batch_size: int
    cache: str

    def classes(self, names: Sequence[str], templates: Sequence[str]) -> Features:
        """Class embeddings [classes, dim]."""
        return class_embeddings(self.clip, names, templates, folder=self.cache, batch_size=self.batch_size)

    def texts(self, texts: Sequence[str]) -> Features:
        """Text embeddings [texts, dim]."""
        return text_features(_NAME, self.clip, list(texts), batch_size=self.batch_size)


def _classification(job: Job, images: Features, kept: list[Item]) -> Scored:
    source, labels = job.source, np.array([item.label for item in kept])
    classes = job.classes(source.classes, source.templates)
    predictions = zero_shot.classify(images, classes, labels, logit_scale=job.clip.logit_scale, first_wins=True)
    groups = np.array([item.groups for item in kept])
    return suite_scores.classification(source.task, predictions, labels, len(source.classes), groups)


def _faces(job: Job, images: Features, kept: list[Item]) -> Scored:
    predicted = {
        name: similarities(images, job.classes(*asked)).argmax(axis=1)
        for name, asked in suite_faces.questions(job.source).items()
    }
    return suite_faces.score(job.source.task, predicted, np.array([item.groups for item in kept]))


def _retrieval(job: Job, images: Features, kept: list[Item]) -> Scored:
    texts = [text for item in kept for text in item.texts]
    owners = np.repeat(np.arange(len(kept)), [len(item.texts) for item in kept])
    if len(np.unique(owners)) != len(kept):
        raise DataError(f"suite: {job.source.task.key} has pictures without a caption, want one each.")
    return suite_scores.retrieval(job.source.task, images, job.texts(texts), owners)


def _association(job: Job, images: Features, kept: list[Item]) -> Scored:
    cues = job.texts([_cue_prompt(item.texts[0]) for item in kept])
    parts = np.split(images, np.cumsum([len(item.right) for item in kept])[:-1])
    scores = [suite_scores.scores_of(cue, part) for cue, part in zip(cues, parts, strict=True)]
    return suite_scores.association(job.source.task, scores, [item.right for item in kept])


def _choice(job: Job, images: Features, kept: list[Item]) -> Scored:
    right, wrong = (job.texts([item.texts[place] for item in kept]) for place in (0, 1))
    return suite_scores.choice(job.source.task, images, right, wrong)


def _cue_prompt(cue: str) -> str:
    """The suite's prompt of a WinoGAViL cue: `A cue` or `An apple`, lower case."""
    word = cue.lower()
    return f"{'An' if word[:1] in set('aeiou') else 'A'} {word}"


def _embed(clip: Clip, source: Source, batch_size: int) -> tuple[Features, list[Item], str]:
    """Embeddings of all pictures [pictures, dim], the samples without theirs, and the digest of what is asked."""
    kept: list[Item] = []
    parts: list[torch.Tensor] = []
    asked = hashlib.sha256(json.dumps([source.classes, source.templates]).encode())
    pictures = _pictures(source, kept, asked.update)
    bar = progress_bar(pictures, desc=source.task.key, unit="image", leave=False)
    stream = iter(bar)
    while batch := list(islice(stream, batch_size)):
        pixels = torch.stack([resize(decode(data), clip.preprocess) for data in batch])
        parts.append(embed_pixels(clip, pixels, batch_size=batch_size))
    if not parts:
        raise DataError(f"suite: {source.task.key} has no sample in '{source.folder}'.")
    features = torch.cat(parts)
    if not torch.isfinite(features).all():
        raise DataError(f"suite: the model gives embeddings of {source.task.key} that are not finite.")
    return features.numpy(), kept, asked.hexdigest()


def _pictures(source: Source, kept: list[Item], note: Callable[[bytes], None]) -> Iterator[bytes]:
    for item in source.items():
        kept.append(Item([], item.label, item.texts, item.groups, item.right))
        note(json.dumps([item.label, item.texts, item.groups, item.right]).encode())
        for data in item.images:
            note(data)
            yield data

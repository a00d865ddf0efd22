"""The per-sample table: what each model did on each sample, so that later models can be compared with these."""

import json
from typing import Any

import numpy as np

from mobileclip.evaluation.assess import Assessment
from mobileclip.evaluation.scores import rounded


def sample_table(found: Assessment) -> bytes:
    """`samples.jsonl`: what each model did on each sample, for paired tests against later models.

    A line has `uid`, `slice`, per model `i2t` (rank of the best own caption) and `t2i` (rank of the image for each of
    its captions), and per zero-shot task the label with each model's rank, prediction and confidence.
    """
    gallery = found.retrieval.gallery
    starts = np.searchsorted(gallery.images, np.arange(gallery.num_images + 1))
    rows: list[dict[str, Any]] = [{"uid": uid} for uid in found.data.uids]
    for index, row in enumerate(rows):
        if found.slices:
            row["slice"] = found.slices[index]
        row["retrieval"] = {
            name: {
                "i2t": int(ranks.image_to_text[index]),
                "t2i": ranks.text_to_image[starts[index] : starts[index + 1]].tolist(),
            }
            for name, ranks in found.retrieval.ranks.items()
        }
        row["zero_shot"] = {}
    for task in found.tasks:
        for place, index in enumerate(task.rows):
            answer: dict[str, Any] = {"label": task.classes[task.labels[place]]}
            for name, p in task.predictions.items():
                answer[name] = {
                    "rank": int(p.ranks[place]),
                    "predicted": task.classes[p.predicted[place]],
                    "confidence": rounded(p.confidences[place]),
                }
            rows[index]["zero_shot"][task.spec.field] = answer
    return "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows).encode()

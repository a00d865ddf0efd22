"""A params file for a user's own images, from what a survey found: only what differs, with the reason beside it."""

import math

from mobileclip.data.survey import Survey

_SMALL = """\
train_teacher:
  teachers:
    - name: teacher
      model: tiny-resnet  # from scratch; published weights make a far better teacher (--gpu)
      training: {{steps: 100, batch_size: {batch}, optimizer: {{lr: 2.0e-3, warmup_steps: 20}}, workers: 0}}
filter: {{keep_share: 0.95}}
finetune_captioner: {{enabled: false}}  # a captioner from scratch writes nothing better than your captions
caption: {{enabled: false}}
reinforce: {{captions: [], views: {{num_views: 2, scale_min: 0.6, rand_augment_ops: 0}}}}
calibrate: {{batch_size: {batch}}}
distill:  # model: tiny-mci; `mobileclip models` lists others
  synthetic: []
  distill_weight: 0.7
  training: {{steps: 200, batch_size: {batch}, optimizer: {{lr: 2.0e-3, warmup_steps: 20}}, workers: 0}}
"""
_GPU = """\
filter: {{model: ViT-L-14, pretrained: datacomp_xl_s13b_b90k}}
finetune_captioner: {{enabled: false}}  # the published one below is taken as it is
caption: {{model: coca_ViT-L-14, pretrained: mscoco_finetuned_laion2b_s13b_b90k, num_captions: 2}}
reinforce:
  views: {{num_views: 5}}
  teachers:  # fetched from the hub; mind their licenses
    - {{name: datacomp, model: ViT-L-14, pretrained: datacomp_xl_s13b_b90k}}
    - {{name: openai, model: ViT-L-14, pretrained: openai}}
  precision: bfloat16
calibrate: {{scales: [30, 40, 50, 60, 70, 80, 90, 100], batch_size: {batch}}}
distill:
  model: MobileCLIP2-S0
  training: {{steps: {steps}, batch_size: {batch}, precision: bfloat16, workers: 8}}
"""
_HELD_OUT = 200
"""Images to hold out where there are enough: fewer make intervals too wide to tell two students apart."""


def draft(found: Survey, source: str, *, gpu: bool) -> str:
    """The file's text.

    Args:
        found: The survey.
        source: Where it was made, for the comment.
        gpu: With published models in their real size, and not with tiny ones from scratch.
    """
    lines = [f"# Written by `mobileclip init {source}`, which found:"]
    lines += [f"#   {line}" for line in found.lines()]
    lines += ["# What is not named here has its default (docs/params.md). Run it with:"]
    lines += ["#   mobileclip run --params THIS_FILE --source " + source, "", "prepare:"]
    if found.kind not in {"folder", "table"}:
        lines.append(f"  source: {found.kind}")
    lines.append("  license: unknown  # of your images and captions, for the lineage and the gate on commercial use")
    held_out = {name for name in found.splits if name in {"validation", "test"}}
    share = 0.0
    if not held_out:
        share = min(0.2, max(0.02, math.ceil(100 * _HELD_OUT / max(found.usable, 1)) / 100))
        lines.append(
            f"  validation_share: {share}  # no image names its split; evaluation needs some that nothing learns from"
        )
    if found.bad:
        allowed = math.ceil(1000 * found.bad / found.rows + 5) / 1000
        lines.append(f"  max_bad_share: {allowed}  # {found.bad:,} of {found.rows:,} cannot be used, see above")
    train = found.splits.get("train", 0) or round(found.usable * (1 - share))
    most = 1024 if gpu else 128
    batch = min(most, 2 ** max(1, int(math.log2(max(2, train // 4)))))
    steps = max(300, min(30_000, 30 * train // batch))
    lines.append((_GPU if gpu else _SMALL).format(batch=batch, steps=steps).rstrip())
    classes = found.classes()
    if classes:
        name = min(classes, key=lambda key: classes[key])
        others = ", ".join(other for other in classes if other != name) or "none"
        lines += ["evaluate:", f"  classifications: [{{field: {name}}}]  # {classes[name]} classes; others: {others}"]
    return "\n".join(lines) + "\n"

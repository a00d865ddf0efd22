"""Pipeline `mobileclip-train`: the whole chain, from raw pictures and captions to a gated student."""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from mobileclip.chain import CHAIN
from pipelines.defaults import Sections
from pipelines.wiring import GROUPS, add_stages, finishing


def build(sections: Sections, profile: str) -> BaseComponent:
    """The pipeline.

    Args:
        sections: Defaults of its parameters.
        profile: Column of the resource table.
    """

    @dsl.pipeline(name="mobileclip-train", description="From raw pictures and captions to a gated student.")
    def train(
        root: str,
        source: str,
        towers: str = "",
        source_digest: str = "",
        towers_digest: str = "",
        code: str = "",
        generation: str = "",
        groups: list[str] = GROUPS,
        prepare: dict[str, Any] = sections["prepare"],
        train_teacher: dict[str, Any] = sections["train_teacher"],
        filter: dict[str, Any] = sections["filter"],
        finetune_captioner: dict[str, Any] = sections["finetune_captioner"],
        caption: dict[str, Any] = sections["caption"],
        reinforce: dict[str, Any] = sections["reinforce"],
        calibrate: dict[str, Any] = sections["calibrate"],
        distill: dict[str, Any] = sections["distill"],
        evaluate: dict[str, Any] = sections["evaluate"],
        export: dict[str, Any] = sections["export"],
        promote: dict[str, Any] = sections["promote"],
    ) -> None:
        """Prepare, reinforce, distill, evaluate, export, promote.

        Args:
            root: Folder or s3:// prefix of the run; stage X writes `ROOT/X`.
            source: Folder with pictures and captions.
            towers: Folder with pretrained towers, where a teacher names some.
            source_digest: Digest of the source; a source that changed since is refused.
            towers_digest: Digest of the towers.
            code: Digest of the library's code; an image with another one is refused.
            generation: Generation of the root, renewed when something else is submitted for it.
            groups: Shares of the work of caption and reinforce: `0/N` to `N-1/N`.
            prepare: Section of params.yaml, like all that follow.
            train_teacher: Section.
            filter: Section.
            finetune_captioner: Section.
            caption: Section.
            reinforce: Section.
            calibrate: Section.
            distill: Section.
            evaluate: Section.
            export: Section.
            promote: Section.
        """
        given = dict(locals())
        with finishing(profile, root, (row.stage for row in CHAIN)):
            add_stages(CHAIN, given, profile=profile)

    return train

"""Pipeline `mobileclip-reinforce`: a reinforced dataset with captioner and teachers by name, fanned out over groups."""

from dataclasses import replace
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from mobileclip.chain import step
from pipelines.defaults import Sections
from pipelines.wiring import GROUPS, add_stages, finishing

# No stage before them trains a model: the sections name captioner and teachers (open_clip, hf-hub: or local-dir:).
ROWS = (
    step("prepare"),
    replace(step("caption"), inputs={"data": "prepare"}),
    replace(step("reinforce"), inputs={"data": "caption"}),
)


def build(sections: Sections, profile: str) -> BaseComponent:
    """The pipeline.

    Args:
        sections: Defaults of its parameters.
        profile: Column of the resource table.
    """

    @dsl.pipeline(name="mobileclip-reinforce", description="A reinforced dataset from pretrained models.")
    def reinforce_dataset(
        root: str,
        source: str,
        source_digest: str = "",
        code: str = "",
        generation: str = "",
        groups: list[str] = GROUPS,
        prepare: dict[str, Any] = sections["prepare"],
        caption: dict[str, Any] = sections["caption"],
        reinforce: dict[str, Any] = sections["reinforce"],
    ) -> None:
        """Prepare, caption and reinforce a dataset.

        Args:
            root: Folder or s3:// prefix of the run; stage X writes `ROOT/X`.
            source: Folder with pictures and captions.
            source_digest: Digest of the source; a source that changed since is refused.
            code: Digest of the library's code; an image with another one is refused.
            generation: Generation of the root, renewed when something else is submitted for it.
            groups: Shares of the work of caption and reinforce: `0/N` to `N-1/N`.
            prepare: Section of params.yaml, like all that follow.
            caption: Section; its model is a published or local captioner.
            reinforce: Section; its teachers are published or local models.
        """
        given = dict(locals())
        with finishing(profile, root, (row.stage for row in ROWS)):
            add_stages(ROWS, given, profile=profile)

    return reinforce_dataset

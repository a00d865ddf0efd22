"""Pipeline `mobileclip-release`: evaluate, export and promote a student that an earlier run trained."""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from mobileclip.chain import step
from pipelines.defaults import Sections
from pipelines.wiring import add_stages, finishing, reuse_stages

EARLIER = ("prepare", "calibrate", "distill")
ROWS = (step("evaluate"), step("export"), step("promote"))


def build(sections: Sections, profile: str) -> BaseComponent:
    """The pipeline.

    Args:
        sections: Defaults of its parameters.
        profile: Column of the resource table.
    """

    @dsl.pipeline(name="mobileclip-release", description="Evaluate, export and promote a trained student.")
    def release(
        root: str,
        prepare_digest: str = "",
        calibrate_digest: str = "",
        distill_digest: str = "",
        code: str = "",
        generation: str = "",
        evaluate: dict[str, Any] = sections["evaluate"],
        export: dict[str, Any] = sections["export"],
        promote: dict[str, Any] = sections["promote"],
    ) -> None:
        """Evaluate, export and promote.

        Args:
            root: Folder or s3:// prefix of the earlier run; stage X writes `ROOT/X`.
            prepare_digest: sha256 of `ROOT/prepare/record.json`; another one is refused, like in all that follow.
            calibrate_digest: The same of calibrate.
            distill_digest: The same of distill.
            code: Digest of the library's code; an image with another one is refused.
            generation: Generation of the root, renewed when something else is submitted for it.
            evaluate: Section of params.yaml, like all that follow.
            export: Section.
            promote: Section.
        """
        given = dict(locals())
        with finishing(profile, root, (row.stage for row in ROWS)):
            add_stages(ROWS, given, profile=profile, earlier=reuse_stages(EARLIER, given, profile=profile))

    return release

"""`python -m pipelines.compile`: write the pipeline packages; the same code and params give the same bytes."""

import argparse
import itertools
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler
from kfp.compiler import KubernetesManifestOptions

from mobileclip.errors import MobileClipError
from pipelines import arguments, defaults
from pipelines.catalog import PIPELINES, build
from pipelines.defaults import Sections
from pipelines.resources import PROFILES
from pipelines.versions import version_name

logger = logging.getLogger(__name__)


def compile_package(name: str, sections: Sections, path: Path, *, profile: str, caching: bool = True) -> Path:
    """Write one package (.yaml: the pipeline, and its Kubernetes settings as a second document).

    Args:
        name: Pipeline.
        sections: Defaults of its parameters.
        path: Where to.
        profile: Column of the resource table.
        caching: Whether Kubeflow may serve tasks from its cache. A recurring run must not: its parameters never change,
            whatever happens to the data.
    """
    arguments.check_numbers(sections, "")
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(build(name, sections, profile), str(path))
    # The compiler's comment at the top prints defaults in an order that changes from process to process.
    lines = itertools.dropwhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    text = "\n".join(lines) + "\n"
    if not caching:
        documents = list(yaml.safe_load_all(text))
        _forbid_caching(documents[0])
        text = yaml.safe_dump_all(documents)
    path.write_text(text, encoding="utf-8")
    return path


def compile_manifests(name: str, sections: Sections, path: Path, *, profile: str, namespace: str = "") -> Path:
    """Write a pipeline and its version as Kubernetes objects, for clusters that keep pipelines as such (GitOps).

    Args:
        name: Pipeline.
        sections: Defaults of its parameters.
        path: Where to.
        profile: Column of the resource table.
        namespace: Of the objects; empty = wherever they are applied.
    """
    package = compile_package(name, sections, path, profile=profile)
    version = version_name(package)
    options = KubernetesManifestOptions(
        pipeline_name=f"mobileclip-{name}",
        pipeline_version_name=re.sub(r"[^a-z0-9-]+", "-", f"mobileclip-{name}-{version}".lower()),
        pipeline_version_display_name=version,
        namespace=namespace or None,
        include_pipeline_manifest=True,
    )
    compiler.Compiler().compile(
        build(name, sections, profile), str(path), kubernetes_manifest_format=True, kubernetes_manifest_options=options
    )
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Compile every pipeline."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.compile", description="Write the pipeline packages.")
    parser.add_argument("--out", type=Path, default=Path("build/pipelines"), help="folder for NAME.yaml")
    parser.add_argument("--params", type=Path, default=defaults.PARAMS, help="defaults of the pipelines' parameters")
    parser.add_argument("--profile", choices=PROFILES, default="gpu", help="column of the resource table")
    parser.add_argument(
        "--manifests", action="store_true", help="as Kubernetes objects Pipeline and PipelineVersion, for GitOps"
    )
    parser.add_argument("--namespace", default="", help="namespace in the manifests")
    chosen = parser.parse_args(argv)
    try:
        sections = defaults.read(chosen.params)
    except MobileClipError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    for name in PIPELINES:
        path = chosen.out / f"{name}.yaml"
        if chosen.manifests:
            compile_manifests(name, sections, path, profile=chosen.profile, namespace=chosen.namespace)
        else:
            compile_package(name, sections, path, profile=chosen.profile)
        print(path)
    return 0


def _forbid_caching(document: dict[str, Any]) -> None:
    graphs = [document["root"], *document["components"].values()]
    for task in itertools.chain.from_iterable(graph["dag"]["tasks"].values() for graph in graphs if "dag" in graph):
        task["cachingOptions"] = {}


if __name__ == "__main__":
    sys.exit(main())

"""Names of pipeline versions; `python -m pipelines.versions` lists those of a server and compares two."""

import argparse
import difflib
import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from mobileclip import __version__
from mobileclip.errors import ConfigError
from mobileclip.lineage import provenance
from pipelines import api, server
from pipelines.catalog import PIPELINES

_SOURCES = ("mobileclip", "components", "pipelines", "params.yaml")


def version_name(package: Path) -> str:
    """`0.1.0+g1a2b3c4d5.6e7f8a9b`: project version, git revision, and the package's own digest.

    The digest tells packages of one revision apart: other images, resources or defaults. `dirty` stands before it
    where the sources are not as committed.

    Args:
        package: The compiled package.
    """
    commit = provenance.git_commit()
    parts = [f"g{commit[:9]}" if commit else "nogit"]
    if commit and _changes():
        parts.append("dirty")
    parts.append(hashlib.sha256(package.read_bytes()).hexdigest()[:8])
    return f"{__version__}+{'.'.join(parts)}"


def main(argv: Sequence[str] | None = None) -> int:
    """List versions, or show in what two of them differ.

    Returns:
        0 done, 1 the server refused, 2 bad input.
    """
    parser = argparse.ArgumentParser(prog="python -m pipelines.versions", description=main.__doc__)
    parser.add_argument("pipeline", choices=sorted(PIPELINES))
    parser.add_argument("--host", required=True, help="Kubeflow Pipelines API, such as http://localhost:8888")
    parser.add_argument("--namespace", default="", help="your namespace, where there are several")
    parser.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), help="names of two versions")
    chosen = parser.parse_args(argv)
    return server.answered(lambda: _show(chosen))


def _show(chosen: argparse.Namespace) -> int:
    found = server.list_versions(api.connect(chosen.host, chosen.namespace), f"mobileclip-{chosen.pipeline}")
    if chosen.compare:
        sys.stdout.writelines(compare(*(_pick(found, name) for name in chosen.compare)))
    else:
        for version in found:
            print(f"{version['created_at'][:16].replace('T', ' ')}  {version['display_name']}")
    return 0


def compare(old: api.Json, new: api.Json) -> list[str]:
    """A unified diff of two uploaded versions' packages, as lines with their ends; empty where they are equal."""
    before, after = (yaml.safe_dump_all(server.documents(version)).splitlines(keepends=True) for version in (old, new))
    return list(difflib.unified_diff(before, after, old["display_name"], new["display_name"], n=3))


def _pick(found: Sequence[api.Json], name: str) -> api.Json:
    for version in found:
        if name in {version["display_name"], version.get("name")}:
            return version
    known = ", ".join(version["display_name"] for version in found) or "none"
    raise ConfigError(f"compare: got '{name}', the server has {known}.")


def _changes() -> str:
    """Changed or new files among the sources, as git lists them."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        ["git", "status", "--porcelain", "--", *_SOURCES], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else "unknown"


if __name__ == "__main__":
    sys.exit(main())

"""Names of pipeline versions: project version, git revision and content."""

import hashlib
import subprocess
from pathlib import Path

from mobileclip import __version__, provenance

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


def _changes() -> str:
    """Changed or new files among the sources, as git lists them."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        ["git", "status", "--porcelain", "--", *_SOURCES], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else "unknown"

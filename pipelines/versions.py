"""Names of pipeline versions: project version and git revision."""

import hashlib
import subprocess
from pathlib import Path

from mobileclip import __version__, provenance

_SOURCES = ("mobileclip", "components", "pipelines", "params.yaml")


def version_name(package: Path) -> str:
    """`0.1.0+g1a2b3c4d5`; a package from uncommitted sources is told apart by its own digest.

    Args:
        package: The compiled package.
    """
    commit = provenance.git_commit()
    revision = f"g{commit[:9]}" if commit else "nogit"
    clean = bool(commit) and not _changes()
    suffix = "" if clean else f".d{hashlib.sha256(package.read_bytes()).hexdigest()[:8]}"
    return f"{__version__}+{revision}{suffix}"


def _changes() -> str:
    """Changed or new files among the sources, as git lists them."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        ["git", "status", "--porcelain", "--", *_SOURCES], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else "unknown"

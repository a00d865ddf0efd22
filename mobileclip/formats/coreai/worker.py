"""Worker of `mobileclip.formats.coreai`: runs in the converter's environment and imports nothing of the project.

Its folder holds `request.json` with a `task`:

- `convert`: `traced.pt2`, with the `names` of input and output, becomes `program.aimodel`;
- `inspect`: the functions of the `asset`;
- `run`: the `asset` computes the rows of `rows.npy`, `batch` per call; the results go to `features.npy`.
"""

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from coreai.authoring import AIModelAsset, graph_builder
from coreai.runtime import NDArray

# Names of inner graphs end in eight random letters; those of constants still differ from process to process.
graph_builder.choice = random.Random(0).choice


def work(folder: Path) -> dict[str, Any]:
    """Do the task in `folder`; the reply."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    if request["task"] == "convert":
        return convert(folder, *request["names"])
    asset = Path(request["asset"])
    if request["task"] == "inspect":
        return inspect(asset)
    np.save(folder / "features.npy", asyncio.run(run(asset, np.load(folder / "rows.npy"), request["batch"])))
    return {}


def convert(folder: Path, given: str, result: str) -> dict[str, Any]:
    """Write the asset; says how many operations it has."""
    import torch  # takes longer than all else of the other tasks
    from coreai_torch import TorchConverter, get_decomp_table
    from coreai_torch.debugging.debug_info import strip_debug_info

    traced = torch.export.load(folder / "traced.pt2").run_decompositions(get_decomp_table())
    converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
    converter.add_exported_program(traced, input_names=[given], output_names=[result])
    program = converter.to_coreai()
    strip_debug_info(program)
    asset = program.save_asset(folder / "program.aimodel")
    asset.update_metadata(_undate)
    counts = dict(asset.summary(include_statistics=True).operation_distribution)
    return {"operations": sum(count for name, count in counts.items() if name != "constant")}


def inspect(asset: Path) -> dict[str, Any]:
    """Functions with names and types of their inputs and outputs."""
    if not AIModelAsset.is_valid(asset):
        raise ValueError("it is no valid asset")
    found = AIModelAsset.load(asset).summary(include_statistics=False)
    if found is None or not found.function_names:
        raise ValueError("it holds no function")
    return {
        "functions": {
            name: {"inputs": found.function_inputs(name), "outputs": found.function_outputs(name)}
            for name in found.function_names
        }
    }


async def run(asset: Path, rows: np.ndarray, batch: int) -> np.ndarray:
    """All rows through the function `main`, `batch` at a time."""
    async with AIModelAsset.load(asset).executable() as model:
        main = model.load_function("main")
        (given,), (result,) = main.desc.input_names, main.desc.output_names
        calls = (rows[start : start + batch] for start in range(0, len(rows), batch))
        features = [(await main({given: NDArray(call)}))[result].numpy().copy() for call in calls]
    return np.concatenate(features)


def _undate(metadata: Any) -> None:
    """Two exports of one student should not differ by their date."""
    metadata.creation_date = None


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "reply.json").write_text(json.dumps(work(place)), encoding="utf-8")

"""What every quantized program with layers kept in floating point must show, whatever its format."""

import itertools
import json

import numpy as np

from mobileclip.config import Export
from mobileclip.formats import programs

FLOATS = ("float32", "float16")


def build(form, precisions, towers, reference, calibration, folder, **keys):
    """Programs by path, and the error of each layer alone by program."""
    folder.mkdir(exist_ok=True)
    section = Export(formats=[form], precisions=precisions, **keys)
    made = programs.build(section, towers, reference, folder, calibrate=lambda: calibration)
    layers = folder / programs.LAYERS_FILE
    return {program.path: program for program in made}, json.loads(layers.read_text()) if layers.is_file() else {}


def check(program, alone, folder, towers, base, *, dtype=np.float32):
    """A program meets its budget with layers kept, says which, and holds their very weights and no others.

    Args:
        program: Of the contract.
        alone: Error of each of its layers alone.
        folder: Where it lies.
        towers: The student.
        base: Path of the tower's program in floating point.
        dtype: Of weights that are not quantized.
    """
    kept = set(program.kept_in_float)
    assert 0 < len(kept) < len(alone)
    assert kept < set(alone)
    assert program.figures["kept"] == len(kept)
    assert program.figures["layers"] == len(alone)
    assert program.figures["error"] <= program.budget
    assert min(alone[layer] for layer in kept) >= max(alone[layer] for layer in set(alone) - kept)
    modules = dict(getattr(towers, program.tower).named_modules())
    places = {name: name.partition("/")[0] for name in alone}
    weights = {name: modules[place].weight for name, place in places.items() if place in modules}
    whole, mixed = _content(base), _content(folder / program.path)
    # Where the exporter folds a scale into a weight, no program holds the weight itself.
    plain = {name for name, weight in weights.items() if _holds(whole, weight, dtype)}
    assert len(plain) > 0.7 * len(alone)
    assert plain & kept
    assert {name for name in plain if _holds(mixed, weights[name], dtype)} == plain & kept


def _content(path):
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return b"".join(file.read_bytes() for file in files)


def _holds(content, weight, dtype):
    """Whether the bytes of a weight occur, in any order of its dimensions."""
    array = weight.detach().numpy().astype(dtype)
    orders = itertools.permutations(range(array.ndim))
    return any(np.ascontiguousarray(array.transpose(order)).tobytes() in content for order in orders)

"""Complete and upgrade a params file: move renamed keys, fill in the defaults, and say what was done."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mobileclip.config.params import Params
from mobileclip.config.params_file import filled
from mobileclip.config.reading import complete
from mobileclip.config.recipes import layers, merge
from mobileclip.config.renames import upgrade


@dataclass(frozen=True)
class Completed:
    """A params file with all its keys.

    Attributes:
        params: The values.
        renamed: Pairs (old, new) of dotted keys that were moved.
        filled: Dotted keys and whole sections that no file named; empty where there was no file.
    """

    params: Params
    renamed: list[tuple[str, str]]
    filled: list[str]

    def lines(self) -> list[str]:
        """One line per renamed key, and one per stage with the keys that have their defaults."""
        lines = [f"renamed: {old} -> {new}" for old, new in self.renamed]
        for stage in type(self.params).model_fields:
            if stage in self.filled:
                lines.append(f"defaults of {stage}: all keys")
            keys = [key.removeprefix(f"{stage}.") for key in self.filled if key.startswith(f"{stage}.")]
            lines += [f"defaults of {stage}: {', '.join(keys)}"] if keys else []
        return lines


def completed(path: Path | None, *, recipes: Sequence[Path] = ()) -> Completed:
    """Complete a params file.

    Args:
        path: Params file; None = the defaults, or with recipes `params.yaml`.
        recipes: Files put over it.

    Raises:
        ConfigError: As `mobileclip.config.read_params`, but for renamed keys.
    """
    base = path or (Path("params.yaml") if recipes else None)
    if base is None:
        return Completed(Params(), [], [])
    found = [*layers(base, key="params"), *(layer for recipe in recipes for layer in layers(recipe))]
    pairs = [upgrade(layer) for layer in found]
    params = complete(*(values for values, _ in pairs))
    named: dict[str, object] = {}
    for values, _ in pairs:
        named = merge(named, values, Params)
    return Completed(params, [move for _, moves in pairs for move in moves], filled(named, params))

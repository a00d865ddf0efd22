"""The step-cost benchmark on a tiny dataset: three variants, every step timed, teachers in the step cost time."""

import torch

from benchmarks.step_cost import VARIANTS, measure, table


def test_measures_every_variant_in_turn(tiny_reinforced, tiny_teachers):
    torch.set_num_threads(1)
    found = measure(tiny_reinforced, tiny_teachers, model="tiny-mci", batch_size=8, steps=3)
    assert tuple(found["variants"]) == VARIANTS
    for row in found["variants"].values():
        for clock in ("wall", "cpu"):
            assert len(row[clock]["seconds"]) == 3
            assert min(row[clock]["seconds"]) > 0
    assert found["variants"]["plain"]["cpu"]["ratio_to_plain"]["median"] == 1.0
    # A teacher as large as the student, forward only: about a third more, stored embeddings next to nothing.
    online, stored = (found["variants"][name]["cpu"]["ratio_to_plain"]["median"] for name in ("online", "stored"))
    assert online > stored
    assert table(found).count("\n") == 4

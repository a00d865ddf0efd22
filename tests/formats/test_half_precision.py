"""float16 programs that a CPU proves and a phone would break are refused."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobileclip.config import Export
from mobileclip.errors import ExportError
from mobileclip.formats import half_precision, programs


class _Peak(nn.Module):
    """An activation of a known size between a factor and its inverse: nothing is left of it in float32."""

    def __init__(self, factor):
        super().__init__()
        self.up, self.down = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(torch.eye(4) * factor)
            self.down.weight.copy_(torch.eye(4) / factor)

    def forward(self, x):
        return F.normalize(self.down(self.up(x.to(self.up.weight.dtype))).float(), dim=-1)


ROWS = torch.tensor([[1.0, 0.5, 0, 0], [0, 1.0, 0, 0], [0, 0, 0.25, 1.0]])


def _reference(reference, tower):
    features = tower(ROWS).detach().numpy()
    return replace(reference, uids=["a", "b", "c"], pixels=ROWS.numpy(), image_features=features)


@pytest.mark.parametrize(("factor", "refused"), [(1024.0, False), (40_000.0, True), (340_917.0, True)])
def test_the_largest_activation_is_found_and_judged(reference, factor, refused):
    tower = _Peak(factor).requires_grad_(requires_grad=False)
    figures, layer = half_precision.prove(tower, "image", _reference(reference, tower))
    assert figures["largest_activation"] == pytest.approx(factor)  # the largest input is 1
    assert layer == "up"
    assert np.isfinite(figures["error_half"]) == (factor < half_precision.LARGEST)
    if refused:
        with pytest.raises(ExportError, match=rf"'image\.float16\.onnx' would overflow .* {factor:,.0f}, in 'up'"):
            half_precision.check("image.float16.onnx", figures, layer, 0.03)
    else:
        half_precision.check("image.float16.onnx", figures, layer, 0.03)


def test_an_error_of_half_precision_alone_is_refused():
    with pytest.raises(ExportError, match=r"has error 0\.05 where every operation rounds to float16"):
        half_precision.check("text.float16.onnx", {"error_half": 0.05, "largest_activation": 3.0}, "blocks.0", 0.03)


def test_half_precision_of_a_student_is_the_program_s(written):
    """The tiny student's float16 program and its tower in half precision err alike."""
    for tower in ("image", "text"):
        figures = written[f"{tower}.float16.onnx"].figures
        assert 1e-5 < figures["error_half"] < 0.03
        assert 0 < figures["largest_activation"] < 1000
        assert "error_half" not in written[f"{tower}.float32.onnx"].figures


def test_a_tower_near_the_end_of_float16_is_not_published(towers, reference, tmp_path):
    """ONNX Runtime's CPU passes it, and other texts reach farther than the proof's."""
    changed = replace(towers, text=deepcopy(towers.text))
    changed.text.blocks[0].ls_2 = _Large()
    with torch.no_grad():
        features = changed.text(torch.from_numpy(reference.tokens)).numpy()
    with pytest.raises(ExportError, match=r"text\.float16\.onnx' would overflow .* is 50,00\d, in 'blocks\.0"):
        programs.build(Export(precisions=["float16"]), changed, replace(reference, text_features=features), tmp_path)


class _Large(nn.Module):
    """Scales each token to a largest value of 50,000."""

    def forward(self, x):
        return x / x.abs().amax(dim=-1, keepdim=True) * 50_000

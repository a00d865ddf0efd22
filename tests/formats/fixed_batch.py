"""What every format's programs of several rows per call must do."""

import numpy as np

from mobileclip.config import Export
from mobileclip.formats import programs
from mobileclip.formats.proof import relative_error
from mobileclip.formats.runtime import load_program

ROWS = 4


def check(name, towers, reference, folder, *, precisions=("float32",)):
    """Write, prove and run programs of four rows on ten samples: the last call is filled, calibration's too."""
    section = Export(formats=[name], precisions=precisions, batch=ROWS, max_error_int8=1.0, max_kept=0.0)
    written = programs.build(section, towers, reference, folder)
    assert {program.tower for program in written} == {"image", "text"}
    for program in written:
        encode, rows = load_program(folder / program.path, threads=1), reference.inputs(program.tower)
        assert encode.batch == program.input.shape[0] == program.output.shape[0] == program.settings["batch"] == ROWS
        assert program.input.kind == "array"
        got = encode(rows)
        assert relative_error(got, reference.features(program.tower)) < (1e-5 if program.precision == "float32" else 1)
        # A row's embedding does not depend on the rows beside it.
        np.testing.assert_allclose(encode(rows[5:6]), got[5:6], atol=1e-6)

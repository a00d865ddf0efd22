"""What a served student does to an image, which must be what every stage does to it."""

import io

import numpy as np
import pytest

from mobileclip.data import images
from mobileclip.data.preprocess import Preprocess
from mobileclip.promotion.student_pyfunc import Student
from tests.photographs import photographs


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", images.RESIZE_MODES)
def test_a_served_student_sees_the_pixels_of_the_stages(mode, interpolation):
    preprocess = Preprocess(96, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation, mode, 90)
    student = Student()
    student.preprocess = preprocess.as_open_clip()
    for image in photographs():
        stream = io.BytesIO()
        image.save(stream, "PNG")
        got = student._pixels(stream.getvalue())
        assert np.array_equal(got, images.resize(image, preprocess)), image.size

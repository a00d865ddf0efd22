"""Every key of a params file, one section per stage, with type, range, default and meaning.

A params file names the keys that differ from the defaults; reading it fills in the rest and refuses unknown keys.
Importing this package loads neither torch nor any stage, so pipelines compile and the CLI prints help fast.
"""

from mobileclip.config.base import Dtype, Name, Section, Share, Split
from mobileclip.config.data import Calibrate, Caption, Filter, Prepare, Reinforce, TeacherRef, Views
from mobileclip.config.params import STAGES, Params
from mobileclip.config.reading import check_section, read_params
from mobileclip.config.release import Classification, Evaluate, Export, Gate, LabelBank, Promote
from mobileclip.config.training import Distill, FinetuneCaptioner, Optimizer, Teacher, Training, TrainTeacher

__all__ = [
    "STAGES",
    "Calibrate",
    "Caption",
    "Classification",
    "Distill",
    "Dtype",
    "Evaluate",
    "Export",
    "Filter",
    "FinetuneCaptioner",
    "Gate",
    "LabelBank",
    "Name",
    "Optimizer",
    "Params",
    "Prepare",
    "Promote",
    "Reinforce",
    "Section",
    "Share",
    "Split",
    "Teacher",
    "TeacherRef",
    "TrainTeacher",
    "Training",
    "Views",
    "check_section",
    "read_params",
]

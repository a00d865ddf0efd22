"""All sections of a params file, by stage."""

from pydantic import model_validator

from mobileclip.config.base import Section
from mobileclip.config.data import Calibrate, Caption, Filter, Prepare, Reinforce
from mobileclip.config.release import Evaluate, Export, Promote
from mobileclip.config.training import Distill, FinetuneCaptioner, TrainTeacher


class Params(Section):
    """params.yaml: one section per stage."""

    prepare: Prepare = Prepare()
    train_teacher: TrainTeacher = TrainTeacher()
    filter: Filter = Filter()
    finetune_captioner: FinetuneCaptioner = FinetuneCaptioner()
    caption: Caption = Caption()
    reinforce: Reinforce = Reinforce()
    calibrate: Calibrate = Calibrate()
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    promote: Promote = Promote()

    @model_validator(mode="after")
    def _check_names(self) -> "Params":
        for label, names in (
            ("train_teacher.teachers", [t.name for t in self.train_teacher.teachers]),
            ("reinforce.teachers", [t.name for t in self.reinforce.teachers]),
        ):
            if len(names) != len(set(names)):
                raise ValueError(f"{label}: names must differ, got {names}")
        return self


STAGES: tuple[str, ...] = tuple(Params.model_fields)

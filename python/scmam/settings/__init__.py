"""Every setting, its unit and its default, by sections."""

from .pretraining import Data, Masking, Model, Training
from .section import Section
from .studies import Evaluation, Study


class Config(Section):
    """All settings."""

    data: Data = Data()
    model: Model = Model()
    masking: Masking = Masking()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    study: Study = Study()

"""What can be configured of a stack. Imports no learner: every process of a job reads it."""

from typing import Literal

from models.data.strict import Strict

ExpertName = Literal["lightgbm", "tfidf"]
Resampling = Literal["none", "over", "under", "smote"]


class StackConfig(Strict):
    """What may join the network in the final score, task by task, where it helps.

    `resample` makes the classes of the fit role equal in number for lightgbm: none, over, under,
    smote.
    """

    experts: tuple[ExpertName, ...] = ("lightgbm",)
    resample: Resampling = "none"

"""The studies, a file each. To add one, write its file and its entry in STUDIES."""

from nula.evaluation.studies.basin import BASIN
from nula.evaluation.studies.certified import CERTIFIED
from nula.evaluation.studies.corruptions import CORRUPTION_STUDY
from nula.evaluation.studies.curvature import CURVATURE
from nula.evaluation.studies.fourier import FOURIER
from nula.evaluation.studies.noise import NOISE
from nula.evaluation.studies.null_space import NULL_SPACE
from nula.evaluation.studies.resolution import RESOLUTION
from nula.evaluation.studies.sensitivity import SENSITIVITY
from nula.evaluation.studies.shifts import SHIFTS
from nula.evaluation.studies.study import Study
from nula.evaluation.studies.table import TABLE

STUDIES: tuple[Study, ...] = (
    TABLE,
    NOISE,
    CORRUPTION_STUDY,
    RESOLUTION,
    SHIFTS,
    FOURIER,
    SENSITIVITY,
    CURVATURE,
    NULL_SPACE,
    CERTIFIED,
    BASIN,
)

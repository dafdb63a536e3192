"""How good are generated pictures? What is measured, over which features, on how many, and how sure it is.

`evaluate` measures a generator, `compare` several checkpoints; the measures themselves are functions of features or of
pictures (`measures`, `pixels`), so that all of it runs offline on any features.
"""
# ruff: noqa: F401, I001

from ..images import EvaluationError, TooFew, to_range
from .comparison import Comparison, compare
from .evaluate import (
    Evaluation, check_evaluation, distance_of, evaluate, evaluate_folder, measure_folder, measure_generator,
)  # fmt: skip
from .features import Extractor, extractor, load_statistics, real_statistics, save_statistics
from .measures import (
    Frechet, Measured, Moments, Statistics, as_asked, beyond, caption_accuracy, clip_score, clip_similarity, cosines,
    diversity, frechet_distance, frechet_floor, frechet_of, halves, jackknife, judge_features, kernel_distance, mean_of,
    precision_recall, r_precision, share_of, statistics_of,
)  # fmt: skip
from .noticed import (
    OPEN, OPEN_PICTURES, colourfulness, effective_number, noticed, pixel_spread, rim, saturation, spectrum, variety,
)  # fmt: skip
from .passes import list_pictures, read_pictures
from .photographs import bird_share, nearest, nearest_training, teacher_features
from .pixels import PixelMeasure, pixel_measure
from .protocol import Plan, generate, noise_of_pictures, plan

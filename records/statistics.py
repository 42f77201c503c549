"""What stored predictions and logits say: intervals, tests, confusion, flips and calibration. Pure functions."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest, f, t

BINS = 15  # of the top probability


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, in [0, 1] (E. B. Wilson, JASA 1927)."""
    interval = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of at least two independent values and its interval by Student's t: (mean, low, high)."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval of a mean needs at least two values, got shape {values.shape}.")
    half = t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def variance_ratio_interval(a: np.ndarray, b: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Of var(a) / var(b), two samples of normal distributions, by Fisher's F: (low, high)."""
    ratio = np.var(a, ddof=1) / np.var(b, ddof=1)
    tail = (1 - confidence) / 2
    return ratio / f.ppf(1 - tail, len(a) - 1, len(b) - 1), ratio / f.ppf(tail, len(a) - 1, len(b) - 1)


def mcnemar_p(correct_a: np.ndarray, correct_b: np.ndarray) -> float:
    """Two-sided exact p-value that two classifiers, right or wrong on the same images, are equally accurate.

    Q. McNemar, Psychometrika 1947, by the binomial distribution of the images on which just one of them is right.
    """
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    return 1.0 if only_a + only_b == 0 else float(binomtest(only_a, only_a + only_b).pvalue)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int = 10) -> np.ndarray:
    """(classes, classes) int64: how many images of class i were called j."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def class_accuracies(labels: np.ndarray, predictions: np.ndarray, classes: int = 10) -> np.ndarray:
    """(classes,) share of each class's images that were called right; NaN for a class without images."""
    matrix = confusion_matrix(labels, predictions, classes)
    with np.errstate(invalid="ignore"):
        return np.asarray(matrix.diagonal() / matrix.sum(axis=1))


def flips(predictions_a: np.ndarray, predictions_b: np.ndarray) -> np.ndarray:
    """Indices of the images to which two models give different answers."""
    return np.flatnonzero(predictions_a != predictions_b)


@dataclass(frozen=True)
class Calibration:
    """How far confidences can be believed; 0 is best for each.

    `expected_calibration_error` in [0, 1], `negative_log_likelihood` in nats, `brier_score` in [0, 2].
    """

    expected_calibration_error: float
    negative_log_likelihood: float
    brier_score: float


def calibration(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Calibration:
    """Of logits (N, classes) against labels (N,).

    The expected calibration error is that of C. Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017):
    |accuracy − confidence| in equal bins of the top probability, weighted by their images. The Brier score is the
    squared distance to the one-hot label, summed over classes.
    """
    log_probabilities = log_softmax(logits.astype(np.float64), axis=1)
    probabilities = np.exp(log_probabilities)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of = np.minimum(np.ceil(confidence * bins).astype(int) - 1, bins - 1)
    gaps = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
    one_hot = np.arange(logits.shape[1]) == labels[:, None]
    return Calibration(
        expected_calibration_error=float(np.abs(gaps).sum() / len(labels)),
        negative_log_likelihood=float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        brier_score=float(((probabilities - one_hot) ** 2).sum(axis=1).mean()),
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature by which logits (N, classes) give labels (N,) the smallest negative log-likelihood.

    C. Guo et al. (2017), section 4.2. It is looked for between 0.05 and 20.
    """

    def loss(log_temperature: float) -> float:
        scores = log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=1)
        return float(-scores[np.arange(len(labels)), labels].mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(found.x))

"""Choose how far each product is smoothed, by rounding it for real on the tokens that were kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sana_calibration.edit import weight_array
from sana_calibration.observers import OBSERVERS, Observer
from sana_calibration.products import chosen
from sana_calibration.rounding import rounded_columns, rounded_tokens
from sana_calibration.smooth import smoothable
from sana_calibration.statistics import TokenStatistics

__all__ = ["Choice", "choose_factors"]

ALPHAS = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # the share of the tokens' spread that the weight takes over
COLUMNS = 512  # of a weight that the error is measured on; rounding one does not depend on the others
LARGEST_FACTOR = 2.0**12

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Choice:
    """The smoothing of one product, and the relative error of its INT8 result without and with it."""

    factors: Floats  # (C), powers of two; all 1 where nothing is gained
    observer: str
    alpha: float
    plain_error: float
    error: float


def choose_factors(transformer: ir.Model, tokens: Mapping[str, TokenStatistics]) -> dict[str, Choice]:
    """A choice for each recorded product that can be smoothed and saw tokens."""
    return {
        product.name: _best(weight_array(product.weight).astype(np.float32, copy=False), tokens[product.name])
        for product in chosen(transformer, tokens)
        if smoothable(product.name) and tokens[product.name].seen
    }


def _best(weight: Floats, tokens: TokenStatistics) -> Choice:
    rows = np.maximum(weight.max(axis=1), -weight.min(axis=1)).astype(np.float64)
    some = np.ascontiguousarray(weight[:, :: -(-weight.shape[1] // COLUMNS)])
    ones = np.ones(len(rows), np.float32)
    plain = _error(tokens.kept, some, ones)
    best = Choice(ones, "none", 0.0, plain, plain)
    for observer, alpha, factors in _candidates(rows, tokens):
        error = _error(tokens.kept, some, factors)
        if error < best.error:
            best = Choice(factors, type(observer).__name__, alpha, plain, error)
    return best


def _candidates(rows: NDArray[np.float64], tokens: TokenStatistics) -> Iterator[tuple[Observer, float, Floats]]:
    """Factors that leave tokens and weights a geometric mean of their spreads, by every rule and every alpha."""
    for observer in OBSERVERS:
        magnitudes = observer.magnitudes(tokens)
        live = (magnitudes > 0) & (rows > 0)
        if live.any():
            for alpha in ALPHAS:
                logs = np.zeros(len(rows))
                logs[live] = alpha * np.log2(magnitudes[live]) - (1 - alpha) * np.log2(rows[live])
                logs[live] -= logs[live].mean()  # a factor common to all channels changes nothing
                limit = np.log2(LARGEST_FACTOR)
                yield observer, alpha, np.exp2(np.rint(np.clip(logs, -limit, limit))).astype(np.float32)


def _error(tokens: Floats, weight: Floats, factors: Floats) -> float:
    """How far the INT8 product is from the float one, relative to its size."""
    expected = tokens @ weight
    actual = rounded_tokens(tokens / factors) @ rounded_columns(weight * factors[:, None])
    size = float(np.linalg.norm(expected))
    return float(np.linalg.norm(actual - expected)) / size if size else 0.0

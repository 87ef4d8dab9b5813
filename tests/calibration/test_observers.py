"""Statistics of tokens say what all the tokens would have said, and take no more room than at the start."""

import numpy as np
import pytest
from sana_calibration.observers import AbsMax, LeastError, Percentile
from sana_calibration.statistics import KEPT_TOKENS, TokenStatistics

HALF_OCTAVE = np.sqrt(2)


@pytest.fixture
def watched():
    """Statistics of a stream, and the stream."""
    rng = np.random.default_rng(0)
    stream = rng.standard_t(4, (40, 25, 6)) * np.array([1e-3, 0.1, 1, 30, 1000, 0])
    statistics = TokenStatistics.empty(6)
    for tokens in stream.astype(np.float32):
        statistics.observe(np.abs(tokens).max(0), tokens, rng)
    return statistics, np.abs(stream.reshape(-1, 6).astype(np.float32))


def test_the_largest_magnitude_is_exact_and_zero_where_nothing_fired(watched):
    statistics, values = watched
    np.testing.assert_array_equal(AbsMax().magnitudes(statistics), values.max(0))
    assert AbsMax().magnitudes(statistics)[5] == Percentile().magnitudes(statistics)[5] == 0
    assert LeastError().magnitudes(statistics)[5] == 0


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_percentile_is_the_streams_own_to_half_an_octave(watched, share):
    statistics, values = watched
    expected = np.quantile(values[:, :5], share, axis=0, method="inverted_cdf")
    actual = Percentile(share).magnitudes(statistics)[:5]
    assert (expected <= actual).all() and (actual <= expected * HALF_OCTAVE * 1.0001).all()


def test_the_least_error_rule_finds_what_a_search_over_the_values_finds(watched):
    statistics, values = watched
    for channel, magnitude in zip(values.T[:5], LeastError().magnitudes(statistics)[:5], strict=True):
        candidates = np.geomspace(channel.max() / 64, channel.max(), 200)

        def error(top, channel=channel):
            step = top / 127
            return np.mean((np.clip(np.rint(channel / step), 0, 127) * step - channel) ** 2)

        assert error(magnitude) < min(map(error, candidates)) * 1.6  # half an octave is a factor 2 in the square


def test_a_single_spike_moves_the_largest_magnitude_but_not_the_percentile(watched):
    statistics, _ = watched
    before = Percentile().magnitudes(statistics)[2]
    spike = np.array([[0, 0, 1e4, 0, 0, 0]], np.float32)
    statistics.observe(spike[0], spike, np.random.default_rng(0))
    assert AbsMax().magnitudes(statistics)[2] == 1e4
    assert Percentile().magnitudes(statistics)[2] <= before * HALF_OCTAVE


def test_kept_tokens_come_from_the_whole_stream_alike():
    kept = []
    for seed in range(30):
        rng, statistics = np.random.default_rng(seed), TokenStatistics.empty(1)
        for start in range(0, 1000, 50):
            tokens = np.arange(start, start + 50, dtype=np.float32)[:, None]
            statistics.observe(tokens.max(0), tokens, rng)
        kept.extend(statistics.kept[:, 0])
    assert len(kept) == 30 * KEPT_TOKENS
    quarters, _ = np.histogram(kept, [0, 250, 500, 750, 1000])
    assert np.abs(quarters - len(kept) / 4).max() < 4 * np.sqrt(len(kept) * 3 / 16)


def test_statistics_do_not_grow_and_survive_being_stored(watched):
    statistics, values = watched
    size = sum(array.nbytes for array in statistics.arrays().values())
    again = TokenStatistics.from_arrays(statistics.arrays())
    for _ in range(200):
        again.observe(values[0], values[:25].astype(np.float32), np.random.default_rng(0))
    assert sum(array.nbytes for array in again.arrays().values()) == size
    assert again.seen == 1000 + 200 * 25

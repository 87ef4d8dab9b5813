"""Which pictures engines are built for, as people say it."""

import pytest
from sana_runtime.bundle import open_bundle
from sana_runtime.engine_shapes import Span
from sana_runtime.errors import UsageError

from sana_export.engines.sizes import span_of
from sana_export.serve.bins import bins


@pytest.fixture
def manifest(built):
    """Of a model that was trained at 1024 pixels."""
    return open_bundle(built("sana").path).manifest


def test_all_is_no_span(manifest):
    assert span_of("all", manifest) is None


def test_a_side_is_the_span_of_the_formats_with_as_many_pixels(manifest):
    height, width = manifest.defaults.size
    formats = bins(manifest)
    span = span_of(str(width), manifest)
    assert height == width and len(formats) > 1 and span == Span.around(formats)
    smaller = span_of(str(width // 2), manifest)
    assert smaller.usual == (height // 2, width // 2) and smaller.largest < span.largest


def test_sizes_are_wide_by_high_and_the_first_is_the_usual_one(manifest):
    _, native = manifest.defaults.size
    half = native // 2
    assert span_of(f"{native}x{native},{native}x{half}", manifest) == Span(
        (half, native), (native, native), (native, native)
    )


@pytest.mark.parametrize("words", ["", "big", "1024 x 1024", "512x512,", "-512", "1_024", "31", "99999", "512x513"])
def test_sizes_that_cannot_be_painted_are_refused_with_what_can_be_said(words, manifest):
    with pytest.raises(UsageError, match=r"^--sizes .*(give|choose) ") as refusal:
        span_of(words, manifest)
    assert "\n" not in str(refusal.value)

"""The formats that are offered are among those that Sana was trained on."""

from dataclasses import replace

import pytest
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_512_BIN, ASPECT_RATIO_1024_BIN
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN
from sana_reference.config import PRESETS
from sana_runtime.bundle import open_bundle
from sana_runtime.signature import Sizes, signatures

from sana_export.serve.bins import bins

TRAINED = {512: ASPECT_RATIO_512_BIN, 1024: ASPECT_RATIO_1024_BIN, 2048: ASPECT_RATIO_2048_BIN}
TRAINED[4096] = ASPECT_RATIO_4096_BIN


def manifest_of(bundle, side):
    """The bundle's manifest, as if its model were trained at `side` pixels."""
    manifest = open_bundle(bundle).manifest
    config = PRESETS["sana-600m"]
    parts = signatures(Sizes(config.depth, config.dim, 2304, sample_size=side // 32))
    transformer = replace(manifest.parts["transformer"], inputs=parts["transformer"].inputs)
    defaults = replace(manifest.defaults, size=(side, side))
    return replace(manifest, parts={**manifest.parts, "transformer": transformer}, defaults=defaults)


@pytest.mark.parametrize("side", TRAINED)
def test_every_format_is_one_of_sanas_own(bundle, side):
    offered = bins(manifest_of(bundle, side))
    assert offered[0] == (side, side)
    assert len(offered) == 9
    assert set(offered) <= {tuple(map(int, size)) for size in TRAINED[side].values()}


def test_only_what_the_bundle_paints_is_offered(bundle):
    manifest = open_bundle(bundle).manifest
    offered = bins(manifest)
    assert manifest.defaults.size in offered
    assert all(manifest.paints(size) for size in offered)

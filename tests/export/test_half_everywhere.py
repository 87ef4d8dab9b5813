"""Parts of 16 bits run through both CPU engines, though one of them has no bfloat16."""

import numpy as np
import pytest
from sana_runtime.session import Device, SessionOptions, open_session

WAYS = {
    "text_encoder": ("bf16", {"batch": 2, "tokens": 9}, 5e-2),
    "transformer": ("fp16", {"batch": 2, "height": 2, "width": 3, "rows": 5}, 3e-2),
    "decoder": ("bf16", {"batch": 1, "height": 2, "width": 1}, 5e-2),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_part_of_16_bits_gives_nearly_the_same_in_either_engine(name, random_model, export):
    precision, sizes, tolerance = WAYS[name]
    part = export(random_model(), precision, (name,))[name]
    assert part.dtype == {"bf16": "bfloat16", "fp16": "float16"}[precision]
    feeds = part.signature.example_feeds(seed=5, **sizes)
    portable = open_session(part.graph, Device.ONNXRUNTIME, SessionOptions(threads=1)).run(feeds)
    halved = SessionOptions(half_products=True, threads=1, signature=part.signature)
    fast = open_session(part.graph, Device.CPU, halved).run(feeds)
    for output, answer in portable.items():
        wide, other = answer.astype(np.float64), fast[output].astype(np.float64)
        assert wide.std() > 0
        assert np.abs(other - wide).max() <= tolerance * np.abs(wide).max()

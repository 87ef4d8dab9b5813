"""`make gpu` on a machine without a card measures nothing, claims nothing and says why."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card is here; run `make gpu`")
def test_without_a_card_every_stage_says_why_it_did_not_run(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "bench/gpu_suite.py"], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "out/gpu.json").read_text())
    assert len(told) == len(done.stdout.splitlines()) >= 11
    for stage in told:
        assert stage["state"] == "not run"
        assert "NVIDIA driver" in stage["told"] or "CUDA device" in stage["told"] or "not installed" in stage["told"]
    assert not list((tmp_path / "out").glob("gpu-*"))

"""`doctor` names the libraries, and says what to install for a card that is here."""

import pytest

from sana_export import doctor
from sana_export.doctor import LIBRARIES, examine, render

CARD = "NVIDIA RTX 4090, compute capability 8.9, driver 580.10, 24564 MB"


def examined(monkeypatch, versions, cards=(CARD,)):
    """What doctor finds on a machine with these cards, where these versions are installed."""

    def version(name):
        if name not in versions:
            raise doctor.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "cards", lambda: list(cards))
    return examine()


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        ({}, "no library that builds engines for it: pip install 'sana-export[rtx]'"),
        ({"tensorrt-rtx": "1.3.0.35"}, "no library that builds engines"),
        ({"tensorrt-rtx": "1.7.1"}, "not what runs its engines: pip install -U 'sana-export[rtx]'"),
        ({"tensorrt": "11.0", "cuda-bindings": "12.9"}, "pip install -U 'sana-export[tensorrt]'"),
        ({"tensorrt-rtx": "1.7.1", "cuda-bindings": "13.0"}, "engine --target rtx`, once for each bundle"),
        ({"tensorrt": "11.1", "cuda-bindings": "13.0"}, "then --device tensorrt"),
    ],
)
def test_a_card_is_told_what_it_still_needs(monkeypatch, versions, told):
    found = examined(monkeypatch, versions)
    assert told in found["more"]
    assert told in render(found).splitlines()[-1]


def test_without_a_card_nothing_is_advised_for_one(monkeypatch):
    found = examined(monkeypatch, {"tensorrt-rtx": "1.7.1"}, cards=())
    assert found["more"] == ""
    assert "more " not in render(found)


def test_every_library_is_listed_with_what_installs_it(monkeypatch):
    lines = render(examined(monkeypatch, {"tensorrt": "10.9", "openvino": "2026.1"})).splitlines()
    told = {line.split()[0]: line for line in lines if line.split() and line.split()[0] in LIBRARIES}
    assert set(told) == set(LIBRARIES) >= {"tensorrt", "tensorrt-rtx", "cuda-bindings"}
    assert "10.9, older than 11; run: pip install -U 'sana-export[tensorrt]'" in told["tensorrt"]
    assert "pip install 'sana-export[rtx]'" in told["cuda-bindings"]
    assert "2026.1, the fast engine" in told["openvino"]


@pytest.mark.parametrize(
    ("flags", "versions", "told"),
    [
        ({"avx512_vnni", "avx512_bf16"}, {"openvino": "2026.4"}, "--device cpu --precision int8: this processor mult"),
        ({"avx2"}, {"openvino": "2026.4"}, "--device cpu --precision int8: its files are the smallest"),
        ({"avx2"}, {}, "--device onnxruntime --precision int8: OpenVINO is not usable here; its files"),
    ],
)
def test_what_is_advised_is_the_precision_that_builds_use_unless_told_otherwise(monkeypatch, flags, versions, told):
    monkeypatch.setattr(doctor, "_processor_flags", lambda: flags)
    assert told in render(examined(monkeypatch, versions, cards=()))

"""From a float bundle to an INT8 one: judged, reported, resumable, and refused in one line when something is wrong."""

import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sana_calibration import loaded
from sana_calibration.gate import Limits
from sana_calibration.loaded import Loaded, Substitutes
from sana_runtime.bundle import open_bundle, seal
from sana_runtime.errors import BusyError, QualityError, UsageError
from sana_runtime.pipeline import Pipeline
from sana_runtime.session import open_session

from sana_export import decoder_trial, int8_stages, plans, quantising
from sana_export.cli.main import main
from sana_export.findings import NO_GAIN
from sana_export.quantising import Int8Settings, calibrate
from sana_export.replay import psnr, verify
from sana_export.speed import Speed, measure_speed

PROMPTS = '"a cat on the mat"\n{"captions": ["a <b>bold</b> & red circle", "a circle"], "scores": [1, 0]}\n""\n'
STAGES = ("record", "smooth", "sensitivity", "gate", "speed", "text", "decoder", "verify")
FAST, SLOW = (Speed(10.0, taken, 7, (2, 32, 4, 4), "engine", 2) for taken in (5.0, 11.0))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Nothing is read from or written to the user's own folders."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("XDG_DATA_HOME", str(folder / "data"))
        patch.setattr(
            int8_stages, "measure_speed", lambda *graphs, **options: FAST
        )  # so small a model gains nothing by INT8
        yield folder


@pytest.fixture(scope="module")
def float_bundle(built):
    return open_bundle(built("sana").path)


@pytest.fixture(scope="module")
def settings(home):
    (home / "prompts.jsonl").write_text(PROMPTS)
    return Int8Settings(home / "prompts.jsonl", samples=2)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def int8_bundle(float_bundle, settings, home, told):
    return calibrate(float_bundle.path, home / "int8", settings, told.append)


def painted(bundle, device):
    with Pipeline.open(bundle.path, device=device) as pipeline:
        return pipeline.generate("two red squares", size=(128, 160), seed=9).pixels


def test_what_stands_in_for_a_part_shares_all_others(float_bundle, int8_bundle):
    source = Loaded(float_bundle)
    candidate = Loaded(float_bundle, Substitutes({"caption": int8_bundle.graph("caption")}), source)
    smoothed, plain = (each.model.conditioner.prompt("a cat").text_kv for each in (candidate, source))
    assert candidate.parts.loaded == ("caption",)
    assert source.parts.loaded == ("text_encoder", "caption")
    assert smoothed.shape == plain.shape and not np.array_equal(smoothed, plain)


def test_where_memory_is_short_one_part_of_both_is_loaded_at_a_time(float_bundle, int8_bundle, monkeypatch):
    monkeypatch.setattr(loaded, "keeps_all", lambda *each: False)
    source = Loaded(float_bundle)
    candidate = Loaded(float_bundle, Substitutes({"caption": int8_bundle.graph("caption")}), source)
    candidate.model.conditioner.prompt("a cat")
    assert (source.parts.loaded, candidate.parts.loaded) == ((), ("caption",))
    candidate.model.conditioner.prompt("a dog")
    candidate.decode(np.zeros((1, 32, 4, 4), np.float32))
    assert (source.parts.loaded, candidate.parts.loaded) == (("decoder",), ())


@pytest.mark.parametrize("large", [True, False], ids=["large", "small"])
def test_only_a_large_model_is_recorded_with_bf16_products(float_bundle, settings, tmp_path, monkeypatch, large):
    options = {}

    def opened(graph, device, chosen):
        options[graph.name] = chosen
        return open_session(graph, device, chosen)

    def stop(step):
        if step.stage == "smooth":
            raise KeyboardInterrupt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(loaded, "open_session", opened)
    monkeypatch.setattr(plans, "SMALL_MODEL", 0 if large else plans.SMALL_MODEL)
    with pytest.raises(KeyboardInterrupt):
        calibrate(float_bundle.path, tmp_path / "bundle", settings, stop)
    assert options["recording.onnx"].half_products is large


@pytest.mark.parametrize("device", ["cpu", "onnxruntime"])
def test_an_int8_bundle_paints_what_the_float_one_paints_on_every_engine(float_bundle, int8_bundle, device):
    assert psnr(painted(int8_bundle, device), painted(float_bundle, device)) >= 32
    verify(int8_bundle.path, device)


def test_the_manifest_names_the_scheme_of_every_part_and_what_stayed_float(float_bundle, int8_bundle):
    manifest = int8_bundle.manifest
    assert manifest.precision == "int8"
    assert manifest.waived == ()
    assert {name: part.scheme for name, part in manifest.parts.items() if part.scheme != "float32"} == {
        "transformer": "int8-channel-token",
        "text_encoder": "int8-weights",
        "decoder": "float32+int8-convolutions",
    }
    assert {"patch", "out"} <= set(manifest.parts["transformer"].kept_float)
    graph = onnx.load(int8_bundle.graph("transformer"), load_external_data=False).graph
    whole = {tensor.name.removesuffix(".weight_int8") for tensor in graph.initializer if "weight_int8" in tensor.name}
    assert len(whole) + len(manifest.parts["transformer"].kept_float) == 14


def test_the_report_tells_every_product_timestep_and_picture(int8_bundle, told):
    report = json.loads(int8_bundle.file("report.json").read_text())
    assert report["gate"]["passed"]
    assert len(report["gate"]["velocity_errors"]) == int8_bundle.manifest.defaults.steps
    assert [each["seed"] for each in report["gate"]["pictures"]] == [1_000_000 + i for i in range(8)]
    assert len(report["products"]) == 12
    assert all(each["effect"] > 0 for each in report["products"])
    assert sorted(report["calibration"]["prompts"]) == ["a <b>bold</b> & red circle", "a cat on the mat"]
    assert not set(report["calibration"]["prompts"]) & {each["prompt"] for each in report["gate"]["pictures"]}
    assert "line 3: the prompt is empty" in report["calibration"]["findings"][0]
    notes = [step.message for step in told if step.stage == "finding"]
    assert notes[:-1] == report["calibration"]["findings"]
    assert notes[-1].startswith(report["speed"]["verdict"])
    assert report["speed"]["ratio"] == 2.0
    files = (int8_bundle.manifest.files[f"transformer.{kind}"] for kind in ("onnx", "data"))
    assert report["size"]["int8_bytes"] == sum(file.size for file in files)


def test_every_part_has_a_verdict_and_a_text_encoder_of_int8_weights_is_judged_by_what_is_painted(int8_bundle):
    report = json.loads(int8_bundle.file("report.json").read_text())
    verdicts = {each["part"]: each["verdict"] for each in report["parts"]}
    assert verdicts.keys() == int8_bundle.manifest.parts.keys()
    assert verdicts["text_encoder"].endswith(": shipped")
    assert re.fullmatch(r"INT8 convolutions in OpenVINO: pictures [\d.]+ dB from fp32's: used", verdicts["decoder"])
    text = report["text_encoder"]
    files = [int8_bundle.manifest.files[f"text_encoder.{kind}"].size for kind in ("onnx", "data")]
    assert text["int8_bytes"] == sum(files)
    assert 0 < text["error"] < 0.05
    assert verdicts["text_encoder"] in int8_bundle.file("report.html").read_text()


def test_a_text_encoder_that_spoils_pictures_stays_float(
    float_bundle, int8_bundle, settings, home, tmp_path, monkeypatch
):
    judged = int8_stages.Calibration.evidence

    def spoilt(self, products, text=False):
        found = judged(self, products, text)
        return replace(found, psnrs=[20.0] * len(found.psnrs)) if text else found

    monkeypatch.setattr(int8_stages.Calibration, "evidence", spoilt)
    shutil.copytree(home / "cache", tmp_path / "cache")
    for verdict in (tmp_path / "cache").rglob("text-*.json"):
        verdict.unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = calibrate(float_bundle.path, tmp_path / "bundle", settings)
    assert made.manifest.parts["text_encoder"] == float_bundle.manifest.parts["text_encoder"]
    assert made.manifest.files["text_encoder.data"] == float_bundle.manifest.files["text_encoder.data"]
    report = json.loads(made.file("report.json").read_text())
    (verdict,) = (each["verdict"] for each in report["parts"] if each["part"] == "text_encoder")
    assert "stays float, median PSNR 20, required 32" in verdict
    assert report["gate"]["passed"], "the transformer is shipped without it"


def test_a_decoder_that_int8_convolutions_spoil_stays_float(
    float_bundle, int8_bundle, settings, home, tmp_path, monkeypatch
):
    assert int8_bundle.manifest.parts["decoder"].int8_convolutions
    monkeypatch.setattr(decoder_trial, "LEAST_PSNR", 98.0)
    made = calibrate(float_bundle.path, tmp_path / "bundle", settings)
    assert made.manifest.parts["decoder"] == float_bundle.manifest.parts["decoder"]
    report = json.loads(made.file("report.json").read_text())
    (verdict,) = (each["verdict"] for each in report["parts"] if each["part"] == "decoder")
    assert verdict.endswith("stays float, as 98 are asked for")


def test_the_page_is_one_file_without_script_that_shows_pictures_and_escapes_prompts(int8_bundle):
    page = int8_bundle.file("report.html").read_text()
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)\s*=\s*(?!"data:image/png;base64,)""", page)
    assert page.count("data:image/png;base64,") == 3 * 6
    assert "a &lt;b&gt;bold&lt;/b&gt; &amp; red circle" in page
    assert "<b>bold" not in page


def test_progress_goes_forward_and_tells_the_time_left(int8_bundle, told):
    steps = [step for step in told if step.stage != "finding"]
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert {step.stage for step in steps} >= set(STAGES)
    assert any("left" in step.message for step in steps if step.stage == "record")


def test_a_second_build_reuses_the_calibration_and_gives_the_same_bundle(float_bundle, int8_bundle, settings, tmp_path):
    told = []
    again = calibrate(float_bundle.path, tmp_path / "again", settings, told.append)
    assert again.digest == int8_bundle.digest
    assert [step.stage for step in told] == ["finding", "record", "verify", "finding", "done"]
    assert "calibration reused" in told[1].message


def test_killed_at_any_stage_it_goes_on_and_ends_the_same(float_bundle, int8_bundle, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    class Killed(Exception):
        pass

    begun = []

    def kill_at(stage):
        def on_step(step):
            begun.append((stage, step.stage, step.message))
            if step.stage == stage and (step.fraction > 0.1 or stage != "record"):
                raise Killed

        return on_step

    for stage in STAGES:
        with pytest.raises(Killed):
            calibrate(float_bundle.path, tmp_path / "bundle", settings, kill_at(stage))
        assert not (tmp_path / "bundle").exists()
    made = calibrate(float_bundle.path, tmp_path / "bundle", settings, kill_at("nothing"))
    assert made.digest == int8_bundle.digest
    for stage, later in zip(STAGES[1:], (*STAGES[3:], "nothing"), strict=False):
        again = [message for killed_at, begun_stage, message in begun if (killed_at, begun_stage) == (later, stage)]
        assert not again, "a stage that was finished is not begun again"
    assert sorted(path.name for path in tmp_path.iterdir() if "lock" not in path.name) == ["bundle", "cache"]


def test_a_gate_that_is_not_passed_publishes_nothing_unless_forced(float_bundle, settings, home, tmp_path, monkeypatch):
    monkeypatch.setattr(quantising, "Limits", lambda: Limits(psnr=200.0))
    monkeypatch.setattr(quantising, "ROUNDS", 2)
    with pytest.raises(QualityError, match=r"PSNR [\d.]+, required 200.*--force") as refused:
        calibrate(float_bundle.path, tmp_path / "bundle", settings)
    assert refused.value.exit_code == 6
    assert not (tmp_path / "bundle").exists()
    forced = calibrate(float_bundle.path, tmp_path / "bundle", replace(settings, force=True))
    assert "PSNR" in forced.manifest.waived[0]
    report = json.loads(forced.file("report.json").read_text())
    assert report["gate"]["complaints"] == list(forced.manifest.waived)
    assert "quality gate is not passed" in forced.file("report.html").read_text()
    assert set(forced.manifest.parts["transformer"].kept_float) > {"patch", "out"}  # it tried with fewer layers


def test_what_is_neither_smaller_nor_faster_is_shipped_in_float(
    float_bundle, settings, int8_bundle, tmp_path, monkeypatch
):
    monkeypatch.setattr(quantising, "graph_bytes", lambda graph: 1000)
    monkeypatch.setattr(quantising.Calibration, "speed", lambda self, products: SLOW)
    kept = calibrate(float_bundle.path, tmp_path / "bundle", settings)
    part = kept.manifest.parts["transformer"]
    assert (part.precision, part.scheme) == ("fp32", "float32")
    assert set(part.kept_float.values()) == {NO_GAIN}
    assert kept.manifest.files["transformer.data"] == float_bundle.manifest.files["transformer.data"]
    assert kept.manifest.files["caption.data"] == float_bundle.manifest.files["caption.data"]
    report = json.loads(kept.file("report.json").read_text())
    assert "stays float" in report["speed"]["verdict"]
    assert not report["shipped_as_int8"]


def test_float_and_int8_take_turns_on_the_same_feeds(float_bundle, int8_bundle):
    signature = float_bundle.manifest.parts["transformer"].signature
    feeds = signature.example_feeds(batch=2, height=2, width=3)
    graphs = (bundle.graph("transformer") for bundle in (float_bundle, int8_bundle))
    speed = measure_speed(*graphs, signature, feeds)
    assert (speed.runs, speed.shape) == (7, (2, 32, 2, 3))
    assert speed.ratio == pytest.approx(speed.float_ms / speed.int8_ms)


def changed(bundle, folder, changes):
    """A copy of a bundle with functions applied to weights, and without a golden record."""
    shutil.copytree(bundle.path, folder)
    for part in ("caption", "transformer"):
        model = onnx.load(folder / f"{part}.onnx", load_external_data=False)
        with (folder / f"{part}.data").open("r+b") as data:
            for tensor in model.graph.initializer:
                if tensor.name in changes:
                    place = {entry.key: entry.value for entry in tensor.external_data}
                    onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
                    data.seek(int(place.get("offset", 0)))
                    data.write(changes[tensor.name](numpy_helper.to_array(tensor)).tobytes())
    (folder / "manifest.json").unlink()
    for file in folder.glob("golden-*"):
        file.unlink()
    return seal(folder, replace(bundle.manifest, golden=(bundle.manifest.golden[0],)[:0]))


def test_what_is_not_finite_is_named_with_tensor_and_step(float_bundle, settings, home, tmp_path):
    def poisoned(weight):
        weight = weight.copy()
        weight.flat[5] = np.nan
        return weight

    broken = changed(float_bundle, tmp_path / "nan", {"blocks.1.feed_forward.expand.weight": poisoned})
    with pytest.raises(QualityError, match=r"blocks\.1\.feed_forward\.contract is not finite at timestep 999 of '"):
        calibrate(broken.path, tmp_path / "bundle", settings)
    assert not (tmp_path / "bundle").exists()


def test_one_prompt_a_layer_of_zeros_and_constant_tokens_are_enough(float_bundle, home, tmp_path, monkeypatch):
    flat = {
        "blocks.0.attention.out.weight": np.zeros_like,
        "blocks.1.kv.weight": np.zeros_like,  # every key and value is its bias: the tokens behind are all the same
    }
    simple = changed(float_bundle, tmp_path / "flat", flat)
    (tmp_path / "one.txt").write_text("a red circle\n")
    made = calibrate(simple.path, tmp_path / "bundle", Int8Settings(tmp_path / "one.txt"))
    report = json.loads(made.file("report.json").read_text())
    assert report["calibration"]["prompts"] == ["a red circle"]
    assert report["gate"]["passed"]
    told = {each["product"]: each for each in report["products"]}
    assert told["blocks.0.attention.out"]["effect"] == 0
    assert all(math.isfinite(each["effect"]) for each in told.values())


def test_a_bundle_that_is_no_float32_one_is_refused(int8_bundle, settings, tmp_path):
    with pytest.raises(UsageError, match="its transformer is int8-channel-token"):
        calibrate(int8_bundle.path, tmp_path / "bundle", settings)


def test_two_calibrations_of_one_model_do_not_mix(float_bundle, int8_bundle, settings, tmp_path):
    def inside(step):
        if step.stage == "verify":
            return
        with pytest.raises(BusyError):
            calibrate(float_bundle.path, tmp_path / "second", settings)
        raise StopIteration

    with pytest.raises(StopIteration):
        calibrate(
            float_bundle.path,
            tmp_path / "first",
            settings,
            lambda step: inside(step) if step.stage == "record" else None,
        )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--precision", "bf16", "--samples", 2), "no effect at bf16"),
        (("--precision", "int8", "--prompts", "nothing.txt"), "nothing.txt"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_done(
    home, tmp_path, monkeypatch, capsys, arguments, why
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["build", "nano", *map(str, arguments)])
    assert left.value.code == 2
    assert why in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "lock" not in path.name]

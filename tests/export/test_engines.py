"""TensorRT-RTX engines, built without a card and read back: what their plans really do."""

import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import psutil
import pytest
from sana_calibration.products import chosen
from sana_calibration.quantise import quantise
from sana_runtime.engine_shapes import engine_signature
from sana_runtime.errors import BackendError

from sana_export.child import command_for
from sana_export.engines.adapt import adapted
from sana_export.engines.build import START, build_engine
from sana_export.engines.job import EngineJob
from sana_export.engines.narrow import Narrow, narrow
from sana_export.plan_reader import read_plan
from sana_export.saving import save_graph

needs_library = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed; pip install sana-export[rtx]"
)
AMPERE_ON, TURING, ADA_ON = (86, 89, 120), (75,), (89, 120)
FORMS = {"int8": quantise, "fp8": lambda model: narrow(model, Narrow.FP8)}
CASES = [("fp16", AMPERE_ON), ("fp16", TURING), ("int8", AMPERE_ON), ("int8", TURING), ("fp8", ADA_ON)]
WEIGHTS_ON_CARD = slice(56, 60)  # where the header holds how many bytes of weights must be on the card; undocumented
OPERANDS = {"int8": "int8", "fp8": "fp8_e4m3"}


@dataclass(frozen=True)
class Graphs:
    """A transformer of two blocks in several number formats."""

    paths: dict
    products: frozenset  # that are worth a narrow format
    signature: object


@pytest.fixture(scope="module")
def graphs(random_model, export, tmp_path_factory):
    """fp16 as exported, and the forms that are made from it; an INT8 bundle's is made from fp32."""
    part, wide = (export(random_model(), form, ("transformer",))["transformer"] for form in ("fp16", "fp32"))
    paths = {"fp16": part.graph, "fp32": wide.graph}
    sources = dict.fromkeys(FORMS, part.graph) | {"int8 bundle": wide.graph}
    for name, source in sources.items():
        model = ir.load(source)
        FORMS.get(name, quantise)(model)
        paths[name] = tmp_path_factory.mktemp("form") / "transformer.onnx"
        save_graph(model, paths[name])
    products = frozenset(product.name for product in chosen(ir.load(part.graph)))
    return Graphs(paths, products, engine_signature(part.signature))


@pytest.fixture(scope="module")
def job(graphs, tmp_path_factory):
    """A function that says how an engine is built."""

    def described(form, capabilities, plugin, fused=False):
        output = tmp_path_factory.mktemp("engine") / "transformer.engine"
        profiles, kernels = graphs.signature.profiles(), {"plugin": plugin, "fused_mix_ffn": fused}
        return EngineJob("transformer", graphs.paths[form], output, profiles, capabilities, **kernels)

    return described


@pytest.fixture(scope="module")
def plan(job):
    """A function that builds an engine, once, and reads its plan."""

    @cache
    def read(form, capabilities, plugin, fused=False):
        built = build_engine(job(form, capabilities, plugin, fused))
        assert built.bytes == built.path.stat().st_size
        return read_plan(built.path.read_bytes())

    return read


@needs_library
@pytest.mark.parametrize(("form", "capabilities"), CASES)
def test_with_the_plugin_every_block_has_one_and_fewer_kernels_are_launched(form, capabilities, plan):
    with_plugin, without = plan(form, capabilities, True), plan(form, capabilities, False)
    layers = [layer for one in with_plugin.plugins for layer in one.layers]
    assert layers == [f"blocks.{i}.attention.ReluLinearAttention" for i in range(2)]
    assert without.plugins == ()
    assert len(with_plugin.operations) < len(without.operations)


@needs_library
@pytest.mark.parametrize("plugin", [True, False])
@pytest.mark.parametrize(("form", "capabilities"), CASES)
def test_every_product_is_computed_as_it_was_chosen(form, capabilities, plugin, plan, graphs):
    products = plan(form, capabilities, plugin).products
    narrow_ones = {one for one in products if OPERANDS.get(form) in one.operands}
    assert all(set(one.operands[:2]) == {OPERANDS[form]} for one in narrow_ones)
    ends = f".{form}.MatMul"
    named = {layer.removesuffix(ends) for one in narrow_ones for layer in one.layers if layer.endswith(ends)}
    assert named == (graphs.products if form in FORMS else set())


@needs_library
def test_an_engine_says_which_cards_it_is_for_and_never_rounds_fp32(plan):
    for form, capabilities in CASES:
        for plugin in (True, False):
            assert plan(form, capabilities, plugin).targets == tuple(f"sm{one}" for one in capabilities)
            assert not plan(form, capabilities, plugin).tf32


@needs_library
def test_int8_costs_at_most_one_kernel_for_each_product(plan, graphs):
    for capabilities in (AMPERE_ON, TURING):
        more = len(plan("int8", capabilities, True).operations) - len(plan("fp16", capabilities, True).operations)
        assert more <= len(graphs.products)


@needs_library
@pytest.mark.parametrize("capabilities", [AMPERE_ON, TURING])
def test_fused_every_mix_ffn_has_a_plugin_between_int8_products_and_a_kernel_less(capabilities, plan, graphs):
    fused, apart = plan("int8", capabilities, True, True), plan("int8", capabilities, True)
    added = [one for one in fused.plugins if one.layers[0].endswith(".GatedDepthwiseInt8")]
    assert [one.layers[0] for one in added] == [f"blocks.{i}.feed_forward.GatedDepthwiseInt8" for i in range(2)]
    assert [one.results for one in added] == [("int8", "float")] * 2
    assert len(fused.plugins) == len(apart.plugins) + 2
    assert len(fused.operations) == len(apart.operations) - 2
    assert not [one.name for one in fused.operations if one.kind == "corrltn"]  # no convolution is left
    assert _int8_products(fused) == _int8_products(apart) == graphs.products
    assert fused.activations <= apart.activations


def _int8_products(plan):
    """Names of the products whose factors are both INT8."""
    ends, products = ".int8.MatMul", (one for one in plan.products if set(one.operands[:2]) == {"int8"})
    return {layer.removesuffix(ends) for one in products for layer in one.layers if layer.endswith(ends)}


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked for fixed addresses")
@pytest.mark.parametrize("fused", [False, True])
def test_two_builds_give_the_same_bytes(fused, job):
    """On a quiet machine the first two do. Under load the library's threads now and then race for memory."""
    seen = {build_engine(job("int8", AMPERE_ON, True, fused)).path.read_bytes()}
    for _ in range(5):
        again = build_engine(job("int8", AMPERE_ON, True, fused)).path.read_bytes()
        assert read_plan(again) == read_plan(next(iter(seen)))
        if again in seen:
            return
        seen.add(again)
    pytest.fail("six builds, and no two of them alike")


@needs_library
def test_a_build_that_is_stopped_leaves_no_process_and_no_file(job):
    class Stop(Exception):
        pass

    def stop(progress):
        if progress.message == "compiling":
            raise Stop

    stopped = job("fp16", AMPERE_ON, True)
    before = set(psutil.Process().children())
    with pytest.raises(Stop):
        build_engine(stopped, stop)
    assert set(psutil.Process().children()) == before
    assert list(stopped.output.parent.iterdir()) == []


@needs_library
def test_progress_grows_and_foretells_an_end(job):
    seen = []
    build_engine(job("fp16", TURING, True), seen.append)
    fractions = [one.fraction for one in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] >= 0 and fractions[-1] < 1
    assert any(one.seconds_left for one in seen)


@needs_library
def test_what_a_card_cannot_compute_is_said_in_one_sentence(job):
    with pytest.raises(BackendError, match=r"8\.6.*SM86 cannot compute in fp8; leave it out of --sm"):
        build_engine(job("fp8", (86,), False))


@needs_library
def test_weights_that_may_stay_off_the_card_change_nothing_else_in_the_plan(job, plan):
    streaming = replace(job("fp16", AMPERE_ON, True), streams=True)
    engine = build_engine(streaming).path.read_bytes()
    assert engine[WEIGHTS_ON_CARD] == bytes(4)
    plain = build_engine(job("fp16", AMPERE_ON, True)).path.read_bytes()
    assert int.from_bytes(plain[WEIGHTS_ON_CARD], "little") > 100_000
    assert read_plan(engine) == plan("fp16", AMPERE_ON, True)


@needs_library
def test_a_graph_that_is_gone_is_said_in_one_sentence(job, tmp_path):
    gone = replace(job("fp16", (89,), False), graph=tmp_path / "gone.onnx")
    with pytest.raises(BackendError, match="transformer for compute capability") as raised:
        build_engine(gone)
    assert "\n" not in str(raised.value)


@needs_library
@pytest.mark.parametrize("plugins", [True, False])
def test_of_an_int8_bundle_turing_gets_no_fp32_product(plugins, plan, graphs):
    products = plan("int8 bundle", TURING, plugins, plugins)
    assert {one.operands[:2] for one in products.products} == {("int8", "int8"), ("half", "half")}
    assert _int8_products(products) == graphs.products


def test_what_turing_gets_of_an_int8_bundle_is_nearer_to_it_than_int8_is_to_fp32(job, graphs):
    narrowed = graphs.paths["int8 bundle"].with_name("turing.onnx")
    narrowed.write_bytes(adapted(job("int8 bundle", TURING, False)))
    feeds = graphs.signature.example_feeds(batch=2, rows=5, height=3, width=4)
    feeds["text_kv"] = feeds["text_kv"].astype(np.float32)
    paths = graphs.paths["fp32"], graphs.paths["int8 bundle"], narrowed
    exact, rounded, turing = (onnxruntime.InferenceSession(path).run(None, feeds)[0] for path in paths)
    assert 0 < np.linalg.norm(turing - rounded) < np.linalg.norm(rounded - exact)


def test_turings_int8_graph_computes_what_the_portable_one_does(job, graphs):
    narrowed = graphs.paths["int8"].with_name("turing.onnx")
    narrowed.write_bytes(adapted(job("int8", TURING, False)))
    feeds = graphs.signature.example_feeds(batch=2, rows=5, height=3, width=4)
    portable, turing = (onnxruntime.InferenceSession(path) for path in (graphs.paths["int8"], narrowed))
    expected, actual = (session.run(None, feeds)[0] for session in (portable, turing))
    assert 0 < np.abs(actual - expected).max() <= 1e-2 * np.abs(expected).max()


def test_other_architectures_without_the_plugin_get_the_graph_as_it_lies_in_its_file(job):
    assert adapted(job("int8", AMPERE_ON, False)) is None


@pytest.mark.parametrize("capabilities", [AMPERE_ON, TURING])
@pytest.mark.parametrize("form", ["fp16", "int8", "fp8"])
def test_the_plugin_takes_q_k_and_v_where_the_product_left_them(form, capabilities, job):
    nodes = onnx.load_from_string(adapted(job(form, capabilities, True))).graph.node
    attention = [node for node in nodes if node.op_type == "ReluLinearAttention"]
    assert [len(node.input) for node in attention] == [1, 1]
    assert not [node.name for node in nodes if node.name.endswith("attention.qkv.Split")]


@pytest.mark.parametrize("form", [Narrow.FP8, Narrow.INT4])
def test_narrow_forms_stay_near_the_graph_they_were_made_from(form, graphs, tmp_path):
    model = ir.load(graphs.paths["fp16"])
    assert narrow(model, form)
    path = tmp_path / "narrow.onnx"
    save_graph(model, path)
    feeds = graphs.signature.example_feeds(batch=1, rows=5, height=3, width=4)
    plain = onnxruntime.SessionOptions()  # its optimizers take FP8 codes for INT8 ones, and then refuse them
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    sessions = (onnxruntime.InferenceSession(graph, plain) for graph in (graphs.paths["fp16"], path))
    expected, actual = (session.run(None, feeds)[0] for session in sessions)
    distance = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert 1e-4 < distance < (0.1 if form is Narrow.FP8 else 0.3)
    onnx.checker.check_model(path)


def test_a_file_in_the_current_folder_is_not_taken_for_a_library(tmp_path):
    (tmp_path / "json.py").write_text("open('taken', 'w').close()")
    done = subprocess.run(command_for(START), cwd=tmp_path, input="", capture_output=True, text=True)
    assert "JSONDecodeError" in done.stderr and not (tmp_path / "taken").exists()

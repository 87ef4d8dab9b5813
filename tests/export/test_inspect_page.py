"""The page of `inspect`: every layer as the graph has it, well-formed, without script, and deaf to what names say."""

import json
import math
from html.parser import HTMLParser

import onnx
import onnx_ir as ir
import pytest
from sana_calibration.quantise import quantise
from sana_calibration.weight_only import quantise_weights
from sana_runtime.onnx_operators import operators

from sana_export.cli.main import main
from sana_export.inspect import describe
from sana_export.inspect_page import inspection_page
from sana_export.layers import INTEGER_PRODUCT, STORED, WIDENED, layers
from sana_export.passes.narrow_weights import narrow_weights

VOID = {"meta"}
KNOWN = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "table", "tr", "th", "td", "span"}
KNOWN |= {"div", "details", "summary", "code"}
ATTRIBUTES = {"class", "style", "title", "lang", "charset", "http-equiv", "content"}
HOSTILE = "</td></style><script>alert(1)</script><img src=x onerror='a'>\"&amp;"


class Strict(HTMLParser):
    """Every element is one that is known, closed in its turn, and none can act or fetch."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.count, self.texts = [], 0, []

    def handle_starttag(self, tag, attributes):
        assert tag in KNOWN, tag
        assert {name for name, _ in attributes} <= {
            "class",
            "style",
            "title",
            "lang",
            "charset",
            "http-equiv",
            "content",
        }
        self.count += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(page):
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


@pytest.fixture(scope="module")
def bundle(built):
    return built("sana").path


@pytest.fixture(scope="module")
def described(bundle):
    return describe(bundle)


def test_the_page_is_well_formed_and_names_every_large_layer_and_file(described):
    page = inspection_page(described)
    seen = set(read(page).texts)
    assert "default-src 'none'" in page
    for part in described["parts"].values():
        large = {layer["name"] for layer in part["layers"] if layer["bytes"] >= 1024}
        assert large
        assert large <= seen
    assert {entry["sha256"] for entry in described["files"].values()} <= seen


def test_layers_hold_every_constant_that_the_onnx_library_finds(bundle, described):
    for name, part in described["parts"].items():
        model = onnx.load(bundle / f"{name}.onnx", load_external_data=False)
        sizes = {t.name: math.prod(t.dims) * onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize
                 for t in model.graph.initializer}  # fmt: skip
        assert sum(layer["bytes"] for layer in part["layers"]) == sum(sizes.values())
        assert {layer["name"] for layer in part["layers"]} == {name.rpartition(".")[0] or name for name in sizes}
        assert {layer["read"] for layer in part["layers"]} == {STORED}
        assert all(layer["operator"] in operators(bundle / f"{name}.onnx") for layer in part["layers"])


def test_rounded_and_widened_weights_are_told_from_plain_ones(bundle, tmp_path):
    model = ir.load(bundle / "transformer.onnx")
    left = quantise(model).left
    narrow_weights(model, ir.DataType.BFLOAT16)
    ir.save(model, tmp_path / "transformer.onnx")
    found = {layer.name: layer for layer in layers(tmp_path / "transformer.onnx")}
    rounded = {name for name, layer in found.items() if layer.read == INTEGER_PRODUCT}
    assert rounded == {f"blocks.{i}.{product}" for i in (0, 1) for product in PRODUCTS}
    assert {(found[name].stored, found[name].operator) for name in rounded} == {("int8", "MatMul")}
    assert {(found[name].stored, found[name].read) for name in left} == {("bf16", WIDENED)}


def test_weights_and_tables_that_are_stored_in_int8_alone_are_widened(bundle, tmp_path):
    model = ir.load(bundle / "text_encoder.onnx")
    done = quantise_weights(model).products
    ir.save(model, tmp_path / "text_encoder.onnx")
    found = {layer.name: layer for layer in layers(tmp_path / "text_encoder.onnx")}
    assert {(found[name].stored, found[name].operator, found[name].read) for name in done} == {
        ("int8", "MatMul", WIDENED)
    }
    table = found["embedding"]
    assert (table.stored, table.operator, table.read) == ("int8", "Gather", WIDENED)


PRODUCTS = ("attention.qkv", "attention.out", "cross_attention.q", "cross_attention.out")
PRODUCTS += ("feed_forward.expand", "feed_forward.contract")


def test_no_text_of_a_bundle_becomes_part_of_the_page(described):
    def spoilt(value):
        if isinstance(value, dict):
            return {name if name in FIXED else f"{name}{HOSTILE}": spoilt(each) for name, each in value.items()}
        return (
            [spoilt(each) for each in value]
            if isinstance(value, list)
            else HOSTILE
            if isinstance(value, str)
            else value
        )

    told = spoilt({**described, "waived": ["limit"]})
    for part in told["parts"].values():
        part["kept_float"] = {layer["name"]: HOSTILE for layer in part["layers"]}
    parser = read(inspection_page(told))
    assert HOSTILE in parser.texts
    assert parser.count > 500


FIXED = {"bundle", "digest", "model", "precision", "bytes", "defaults", "solver", "steps", "guidance", "size", "parts"}
FIXED |= {"golden", "waived", "files", "sha256", "scheme", "nodes", "operators", "licence", "kept_float", "layers"}
FIXED |= {"name", "operator", "shape", "stored", "read"}


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return (left.value.code, *capsys.readouterr())


def test_the_command_writes_the_page_beside_the_text(capsys, bundle, described, tmp_path):
    plain = run(capsys, "inspect", bundle)[1]
    code, out, told = run(capsys, "inspect", bundle, "--html", tmp_path / "page.html")
    assert (code, out) == (0, plain)
    assert "page.html" in told
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == inspection_page(described)
    last = run(capsys, "inspect", bundle, "--json")[1].splitlines()[-1]
    assert json.loads(last)["parts"] == json.loads(json.dumps(described["parts"]))


def test_a_page_that_cannot_be_is_refused_in_one_line(capsys, bundle, tmp_path):
    code, _, told = run(capsys, "inspect", bundle, "--html", tmp_path / "nowhere" / "page.html")
    assert (code, "name another file" in told) == (2, True)
    code, _, told = run(capsys, "inspect", "--engine", tmp_path, "--html", tmp_path / "page.html")
    assert (code, "shows bundles, not engines" in told) == (2, True)

"""What a bundle's maker wrote, wherever it is allowed to write, is shown as text: in a browser, in a terminal."""

import json
from html.parser import HTMLParser

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sana_export.cli.main import main
from sana_export.report_page import page

SCRIPT = "</td></title></style><script>alert(1)</script><img src=x onerror='alert(2)'>\"&amp;"


class Seen(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts = set(), set(), ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.texts += data


def harmless(text):
    seen = Seen(text)
    return not seen.tags & {"script", "img", "iframe", "object", "a", "link", "base", "form"} and not any(
        name.startswith("on") or name in ("src", "href") for name in seen.attributes
    )


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return (left.value.code, *capsys.readouterr())


def hostile(folder, declare, change):
    """The bundle, its decoder changed by `change` and every free text of its manifest a script."""

    def spoil(entries):
        for part in entries["parts"].values():
            part["source"].update(repository=SCRIPT, revision=SCRIPT, licence=SCRIPT)
            part["kept_float"] = {"a.layer": SCRIPT}
        entries["golden"][0].update(prompt=SCRIPT, negative=SCRIPT)
        entries["waived"] = [SCRIPT]

    model = onnx.load(folder / "decoder.onnx", load_external_data=False)
    change(model.graph)
    (folder / "decoder.onnx").write_bytes(model.SerializeToString())
    declare(folder, spoil)


def rename(graph):
    """Script and colours in the names of a large weight and of its reader."""
    name = f"{SCRIPT}\x1b[31m.{SCRIPT}\x1b]0;owned\x07"
    graph.initializer.append(numpy_helper.from_array(np.ones(1000, np.float32), name))
    graph.node.append(onnx.helper.make_node("Neg", [name], [f"{name}\n"], name=name))


def test_scripts_and_colours_in_every_free_text_of_a_bundle_are_shown_as_text(
    folder, declare, tmp_path, capsys, figure
):
    hostile(folder, declare, rename)
    code, out, err = run(capsys, "inspect", folder, "--html", tmp_path / "page.html")
    assert code == 0 and "\x1b" not in out + err and "\x07" not in out + err
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert harmless(text) and "<script>alert(1)</script>" in Seen(text).texts
    code, out, _ = run(capsys, "inspect", folder, "--json")
    assert code == 0 and "\x1b" not in out and json.loads(out.splitlines()[-1])
    figure(1, "scripts and terminal codes in every free text of a bundle, shown by `inspect`: as text")


@pytest.mark.parametrize("name", ["\x1b[31mAdd", SCRIPT, "", "Add\n", "Ädd", "A" * 10 + " "], ids=ascii)
def test_an_operator_whose_name_is_none_is_refused(name, folder, declare, capsys):
    def add(graph):
        graph.node.insert(0, onnx.helper.make_node(name, ["weight"], ["x2"]))

    hostile(folder, declare, add)
    code, _, err = run(capsys, "inspect", folder)
    assert code == 3 and "no operator's name" in err and "\x1b" not in err and len(err.splitlines()) == 1


def nameless(graph):
    for initializer in graph.initializer:
        initializer.ClearField("name")


def without_operator(graph):
    graph.node[0].ClearField("op_type")


def without_type(graph):
    graph.initializer.append(onnx.TensorProto(name="empty"))


def cast_to_nothing(graph):
    graph.node.insert(0, onnx.helper.make_node("Cast", ["weight"], []))


def gathered_to_nothing(graph):
    graph.node.insert(0, onnx.helper.make_node("Gather", ["weight"], []))


@pytest.mark.parametrize(
    "change",
    [nameless, without_operator, without_type, cast_to_nothing, gathered_to_nothing],
    ids=lambda one: one.__name__,
)
def test_a_graph_that_lacks_what_graphs_have_is_shown_or_refused_in_one_line(change, folder, declare, tmp_path, capsys):
    hostile(folder, declare, change)
    code, _, err = run(capsys, "inspect", folder, "--html", tmp_path / "page.html")
    assert code in (0, 3) and (code == 0 or len(err.strip().splitlines()) == 1)


def spoilt(value):
    """Every text in a report is a script; numbers stay."""
    if isinstance(value, dict):
        return {name: spoilt(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [spoilt(entry) for entry in value]
    return SCRIPT if isinstance(value, str) else value


PART = {"part": "", "scheme": "", "verdict": "", "kept_float": {SCRIPT: ""}}
PRODUCT = {"product": "", "int8": False, "effect": 0.1, "rounding_error_plain": 0.1, "rounding_error": 0.1,
           "smoothing": "", "why_float": ""}  # fmt: skip
GATE = {
    "passed": False, "complaints": [""],
    "limits": {"psnr": 1.0, "ssim": 1.0, "latent_cosine": 1.0, "velocity_error": 1.0},
    "median_psnr": 1.0, "median_ssim": 1.0, "median_latent_cosine": 1.0,
    "velocity_errors": [{"timestep": 1.0, "median": 0.1, "worst": 0.1}],
    "pictures": [{"prompt": "", "seed": 1, "psnr": 1.0, "ssim": 1.0, "cosine": 1.0}],
}  # fmt: skip
CALIBRATION = {"prompts": [""], "prompt_set_sha256": "", "findings": [""], "solver": "", "timesteps": [1.0],
               "guidance": 1.0, "branches": 2, "size": [32, 32]}  # fmt: skip
REPORT = {"model": "", "int8_share": 0.5, "gate": GATE, "calibration": CALIBRATION, "speed": {"verdict": ""},
          "parts": [PART], "products": [PRODUCT]}  # fmt: skip


def test_scripts_in_every_text_of_a_report_are_shown_as_text():
    seen = page(spoilt(REPORT), [("", "", "")])
    assert "<script" not in seen and "onerror='" not in seen
    assert Seen(seen).texts.count("<script>alert(1)</script>") >= 12

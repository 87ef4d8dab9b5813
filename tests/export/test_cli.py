"""The command line: one result on stdout, one line for every failure, the documented exit codes."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from PIL import Image
from sana_runtime.picture import read_picture, read_recipe

from sana_export.cli.main import COMMANDS, main

HEAVY = ["numpy", "torch", "onnx", "onnxruntime", "openvino", "transformers", "rich", "PIL", "tokenizers"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Nothing is read from or written to the user's own folders."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """A function that runs the command line in this process: exit code, stdout, stderr."""

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        return (left.value.code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def bundle(built):
    return built("sana").path


def test_help_names_every_command_and_loads_no_heavy_library():
    program = (
        "import sys\nfrom sana_export.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print('loaded:', *[name for name in {HEAVY} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert all(f"\n  {command} " in shown for command in COMMANDS)
    assert shown.splitlines()[-1] == "loaded:"


OPTIONS = {
    "build": {
        "--output", "--precision", "--autoencoder", "--text-encoder", "--revision", "--variant", "--resume",
        "--prompts", "--samples", "--force", "--json",
    },
    "calibrate": {"--output", "--prompts", "--samples", "--force", "--json"},
    "generate": {
        "--bundle", "--output", "--size", "--steps", "--guidance", "--guidance-interval", "--negative", "--seed",
        "--solver", "--count", "--prompts", "--image", "--strength", "--like", "--preview", "--no-metadata",
        "--keep-prompts", "--device", "--json",
    },
    "plan": {"--precision", "--size", "--json"},
    "verify": {"--device", "--public-key", "--signature", "--require-signature", "--json"},
    "sign": {"--key", "--signature", "--json"},
    "evaluate": {"--each", "--steps", "--guidance", "--guidance-interval", "--sheet", "--device", "--json"},
    "engine": {
        *("--target", "--sm", "--plugin", "--no-plugin", "--fused-mix-ffn"),
        *("--sizes", "--stream-weights", "--part", "--json"),
    },
    "bench": {"--repeats", "--size", "--steps", "--device", "--json"},
    "inspect": {"--engine", "--html", "--json"},
    "info": {"--json"},
    "serve": {
        "--host", "--port", "--api-key", "--allow-host", "--queue", "--max-steps", "--unfetched", "--device", "--json",
    },
    "doctor": {"--json"},
    "cache": set(),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_the_options_that_its_users_know(run, command):
    code, shown, _ = run(command, "--help")
    columns = [re.split(r"\s{2,}", line.strip())[0] for line in shown.splitlines()]
    named = {name for column in columns if column.startswith("-") for name in re.findall(r"--[\w-]+", column)}
    assert code == 0
    assert named - {"--help"} == OPTIONS[command]


def test_a_picture_is_painted_and_only_its_path_is_on_stdout(run, bundle):
    code, out, progress = run("generate", "a red circle", "-b", bundle, "--steps", 3, "--seed", 7, "--size", "96x64")
    assert (code, out) == (0, "out.png\n")
    assert "paint 3/3" in progress or "decode" in progress
    assert read_picture("out.png").shape == (64, 96, 3)
    recipe = read_recipe("out.png")
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.size) == ("a red circle", 7, 3, (64, 96))


def test_a_picture_is_repeated_from_its_own_recipe(run, bundle):
    guided = ("--negative", "blue", "--guidance-interval", "700..1000")
    run("generate", "a red circle", "-b", bundle, "--steps", 3, "--seed", 7, *guided)
    assert read_recipe("out.png").guidance_interval == (700, 1000)
    assert run("generate", "--like", "out.png", "-b", bundle, "-o", "again.png")[0] == 0
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes()
    for option in (("--seed", 8), ("--guidance-interval", "0..1000")):
        run("generate", "--like", "out.png", "-b", bundle, "-o", "other.png", *option)
        assert (read_picture("other.png") != read_picture("out.png")).any()


def test_an_interval_reaches_the_pictures_that_are_evaluated(run, bundle):
    options = ("--each", 1, "--steps", 1, "--guidance-interval", "600..1000")
    assert run("evaluate", bundle, *options)[0] == 0
    code, _, errors = run("evaluate", bundle, *options, "--guidance", 1)
    assert code == 2 and "interval has no effect" in errors


def test_prompts_come_from_a_file_and_pictures_are_numbered(run, bundle):
    Path("prompts.txt").write_text("a circle\n\n一只猫\n")
    code, out, _ = run("generate", "--prompts", "prompts.txt", "-b", bundle, "--steps", 1, "--count", 2)
    assert code == 0
    assert out.split() == [f"out-{i}.png" for i in range(4)]
    assert [read_recipe(name).prompt for name in out.split()] == ["a circle"] * 2 + ["一只猫"] * 2
    assert [read_recipe(name).seed for name in out.split()] == [42, 43, 42, 43]


def test_a_picture_can_be_repainted(run, bundle):
    run("generate", "a circle", "-b", bundle, "--steps", 2)
    options = ("--image", "out.png", "--strength", 0.5, "-o", "b.png")
    code, *_ = run("generate", "a star", "-b", bundle, "--steps", 4, *options)
    assert code == 0
    assert (read_picture("b.png") != read_picture("out.png")).any()


def test_previews_are_written_while_painting(run, bundle):
    run("generate", "a circle", "-b", bundle, "--steps", 2, "--preview")
    assert read_picture("out.preview.png").shape == (32, 32, 3)


def test_json_output_is_one_object_a_line_and_ends_with_the_result(run, bundle):
    code, out, errors = run("generate", "a circle", "-b", bundle, "--steps", 2, "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert (code, errors) == (0, "")
    assert [event["event"] for event in events[:-2]] == ["progress"] * (len(events) - 2)
    assert [event["event"] for event in events[-2:]] == ["note", "result"]  # nobody has verified the bundle here
    assert events[-1]["path"] == "out.png"


def test_info_shows_a_recipe_without_control_characters(run, bundle):
    run("generate", "red\x1b[31m circle", "-b", bundle, "--steps", 1)
    code, out, _ = run("info", "out.png")
    assert code == 0
    assert "\\x1b[31m circle" in out
    assert "\x1b" not in out


def test_metadata_is_left_out_on_request(run, bundle):
    run("generate", "a secret", "-b", bundle, "--steps", 1, "--no-metadata")
    assert run("info", "out.png")[0] == 2


def test_inspect_lists_every_part_with_its_operators(run, bundle):
    code, out, _ = run("inspect", bundle, "--json")
    described = json.loads(out.splitlines()[-1])
    assert code == 0
    assert sorted(described["parts"]) == ["caption", "decoder", "encoder", "text_encoder", "transformer"]
    assert described["parts"]["transformer"]["operators"]["ReluLinearAttention"] == 2  # one a block
    assert "transformer" in run("inspect", bundle)[1]


def test_plan_says_what_a_build_takes(run, built):
    code, out, _ = run("plan", built("sana").folder, "--precision", "fp32", "--json")
    planned = {part["name"]: part for part in json.loads(out.splitlines()[-1])["parts"]}
    assert code == 0
    for name, part in planned.items():
        model = onnx.load(built("sana").path / f"{name}.onnx", load_external_data=False)
        tensors = [tensor for tensor in model.graph.initializer if tensor.external_data]
        held = sum(4 * math.prod(tensor.dims) for tensor in tensors)
        assert 0.75 * part["bytes"] <= held <= 1.25 * part["bytes"]  # small tensors lie inside the graph


def test_a_bundle_and_its_checkpoint_foresee_the_same_memory(run, built, bundle):
    model, finished = (
        json.loads(run("plan", where, *options, "--size", "128x64", "--json")[1].splitlines()[-1])
        for where, options in ((built("sana").folder, ("--precision", "fp32")), (bundle, ()))
    )
    assert finished["one_at_a_time"] == pytest.approx(model["one_at_a_time"], rel=0.01)
    assert finished["all_loaded"] == pytest.approx(model["all_loaded"], rel=0.01)
    working = [{part["name"]: part["working"] for part in plan["painting"]} for plan in (model, finished)]
    assert working[0] == working[1]
    assert run("plan", bundle, "--precision", "fp32")[0] == 2


def test_verify_says_that_all_is_well(run, bundle):
    code, out, _ = run("verify", bundle)
    assert code == 0
    assert "every byte as packed; 2 golden pictures" in out


def test_doctor_recommends_a_device_and_a_precision(run):
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["device"] in ("cpu", "onnxruntime")
    assert found["libraries"]["onnxruntime"]["usable"]
    assert "--device" in run("doctor")[1]


def test_the_cache_is_listed_and_cleared(run, tmp_path):
    folder = tmp_path / "cache" / "sana-export" / "engines"
    folder.mkdir(parents=True)
    (folder / "x").write_bytes(bytes(1000))
    assert json.loads(run("cache", "ls", "--json")[1])["entries"] == [{"name": "engines", "bytes": 1000}]
    assert json.loads(run("cache", "clear", "--json")[1])["bytes"] == 1000
    assert "nothing is kept" in run("cache", "ls")[1]
    assert run("cache", "path")[1].strip() == str(tmp_path / "cache" / "sana-export")


def test_the_last_bundle_built_is_used_when_none_is_named(run, bundle):
    assert run("inspect")[0] == 2
    from sana_export.latest import remember_bundle

    remember_bundle(bundle)
    assert run("inspect")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["generate", "x", "--size", "100x100"], 2, "in steps of 32"),
        (["generate", "x", "--size", "large"], 2, "WIDTHxHEIGHT"),
        (["generate", "x", "--steps", "0"], 2, "from 1 to 1000"),
        (["generate", "x", "--steps", "many"], 2, "valid integer"),
        (["generate", "x", "--guidance", "nan"], 2, "guidance"),
        (["generate", "x", "--guidance-interval", "600-1000"], 2, "LOW..HIGH"),
        (["generate", "x", "--guidance-interval", "1000..600"], 2, "the lower one first"),
        (["generate", "x", "--guidance-interval", "600..1000", "--guidance", "1"], 2, "interval has no effect"),
        (["generate", "x", "--seed", "-1"], 2, "seed -1"),
        (["generate", "x", "--count", "0"], 2, "count 0"),
        (["generate", "x", "--strength", "0.5"], 2, "--image"),
        (["generate", "x", "--device", "abacus"], 2, "abacus"),
        (["generate", "x", "--device", "cuda"], 5, "onnxruntime-gpu"),
        (["generate", "x", "-o", "out.jpg"], 2, ".png"),
        (["generate", "x", "-o", "folder.PNG"], 2, "a folder has this name"),
        (["generate", "x", "-o", "folder.PNG/../file/out.png"], 2, "choose another"),
        (["generate", "x", "--count", "2", "-o", "numbered.png"], 2, "numbered-1.png: a folder"),
        (["generate", "x", "--size", "0x0"], 2, "0"),
        (["generate", "--like", "foreign.tif"], 2, "no recipe inside"),
        (["generate", "--like", "file"], 2, "not a picture"),
        (["generate", "x", "--image", "file"], 2, "not a picture"),
        (["generate", "x", "--image", "foreign.tif"], 2, "in steps of 32"),
        (["generate", "--prompts", "file"], 2, "no prompt in it"),
        (["generate", "--prompts", "folder.PNG"], 2, "cannot be read"),
        (["info", "folder.PNG"], 2, "folder.PNG"),
        (["verify", "nothing"], 3, "nothing"),
        (["inspect", "file"], 3, "file"),
        (["plan", "./nothing"], 3, "nothing"),
        (["plan", "--size", "1"], 2, "WIDTHxHEIGHT"),
        (["evaluate", "nothing"], 3, "nothing"),
        (["generate"], 2, "nothing to paint"),
        (["generate", "x" * 10_000], 2, "shorten it"),
        (["generate", "x", "--like", "nothing.png"], 2, "no such file"),
        (["generate", "x", "--prompts", "nothing.txt"], 2, "PROMPT and --prompts"),
        (["generate", "--prompts", "nothing.txt"], 2, "nothing.txt"),
        (["generate", "x", "--colour", "red"], 2, "--colour"),
        (["paint"], 2, "paint"),
        (["info", "nothing.png"], 2, "no such file"),
        (["build", "./nothing/here"], 3, "nothing"),
        (["build", "--precision", "int3"], 2, "int3"),
    ],
)
def test_bad_input_is_one_line_and_its_exit_code(run, bundle, arguments, code, told):
    if arguments[0] == "generate":
        arguments = [*arguments, "-b", str(bundle)]
    for folder in ("folder.PNG", "numbered-1.png"):
        Path(folder).mkdir()
    Path("file").write_text("\n \n")
    Image.new("RGB", (100, 60)).save("foreign.tif")
    left, out, errors = run(*arguments)
    lines = [line for line in errors.splitlines() if "%" not in line[:5] and not line.startswith("     still ")]
    assert left == code
    assert out == ""
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert told in lines[0]
    assert [path.name for path in Path().glob("*.png")] == ["numbered-1.png"]


@pytest.mark.parametrize("command", ["generate", "verify", "inspect"])
def test_a_folder_that_is_no_bundle_is_refused(run, tmp_path, command):
    where = ["x", "-b", tmp_path] if command == "generate" else [tmp_path]
    code, _, errors = run(command, *where)
    assert code == 3
    assert "manifest.json" in errors

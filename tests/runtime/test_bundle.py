"""Bundles open when they are exactly what they declare, and are refused when anything at all is different."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from sana_runtime import bundle as bundle_module
from sana_runtime.bundle import describe, open_bundle, reseal, seal
from sana_runtime.errors import BundleError
from sana_runtime.manifest import FileEntry, Manifest, dump, parse


def edit(folder: Path, change) -> None:
    """Change the manifest as a dictionary, without any of the checks."""
    file = folder / "manifest.json"
    entries = json.loads(file.read_text())
    change(entries)
    file.write_text(json.dumps(entries))


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sealed_folder_opens_and_every_byte_verifies(bundle_folder):
    bundle = open_bundle(bundle_folder)
    bundle.verify()
    assert bundle.graph("decoder") == bundle_folder / "decoder.onnx"
    assert bundle.size == sum(f.stat().st_size for f in bundle_folder.iterdir() if f.suffix in (".onnx", ".data"))
    assert bundle.manifest.parts["caption"].signature.part == "caption"


def test_two_folders_with_the_same_files_have_the_same_manifest_and_digest(bundle_folder, tmp_path):
    other = shutil.copytree(bundle_folder, tmp_path / "other")
    (other / "manifest.json").unlink()
    manifest = parse((bundle_folder / "manifest.json").read_bytes())
    assert seal(other, manifest).digest == open_bundle(bundle_folder).digest
    assert (other / "manifest.json").read_bytes() == (bundle_folder / "manifest.json").read_bytes()


def test_the_golden_record_and_the_preview_come_back_as_arrays(bundle_folder):
    bundle = open_bundle(bundle_folder)
    latent, picture = bundle.golden(bundle.manifest.golden[0])
    assert (latent.shape, picture.shape) == ((32, 2, 3), (64, 96, 3))
    assert latent.tobytes() == (bundle_folder / "golden-0.data").read_bytes()
    assert picture.tobytes() == (bundle_folder / "golden-0-picture.data").read_bytes()
    grey = bundle.preview(np.zeros((1, 32, 2, 3), np.float32))
    assert grey.shape == (1, 2, 3, 3) and (grey == 128).all()


def test_tokenizer_and_prompt_rules_are_read_from_the_bundle(bundle_folder, tiny_tokenizer, manifest):
    from sana_runtime.prompt import PromptRules
    from sana_runtime.tokenizer import Tokenizer

    shutil.copy(tiny_tokenizer / "tokenizer.json", bundle_folder)
    rules = PromptRules.derive(Tokenizer(tiny_tokenizer / "tokenizer.json"))
    (bundle_folder / "prompt.json").write_text(rules.to_json())
    bundle = seal(bundle_folder, manifest)
    assert bundle.prompt_rules() == rules
    assert bundle.tokenizer().encode("a cat") == Tokenizer(tiny_tokenizer / "tokenizer.json").encode("a cat")


def test_another_manifest_for_the_same_files_reads_none_of_them(bundle_folder, manifest, monkeypatch):
    bundle = seal(bundle_folder, manifest)
    monkeypatch.setattr(bundle_module, "describe", None)
    again = reseal(bundle, replace(manifest, model="another"))
    assert again.manifest == replace(bundle.manifest, model="another")
    again.verify()
    (bundle_folder / "decoder.onnx").write_bytes(b"shorter")
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        reseal(bundle, manifest)


def test_opening_needs_no_engine_library_and_no_tokenizer(bundle_folder):
    program = (
        "import sys; from sana_runtime.bundle import open_bundle; open_bundle(sys.argv[1]); "
        "print(*{'onnx', 'onnxruntime', 'openvino', 'tokenizers', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program, bundle_folder], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_part_that_is_not_there_is_asked_for_in_vain(bundle_folder):
    with pytest.raises(BundleError, match="no part encoder"):
        open_bundle(bundle_folder).graph("encoder")


def test_a_bundle_that_is_replaced_while_open_says_so(bundle_folder, manifest):
    bundle = open_bundle(bundle_folder)
    seal(bundle_folder, replace(manifest, model="another"))
    with pytest.raises(BundleError, match="replaced while it was in use"):
        bundle.graph("decoder")


# Names that no bundle may use, whatever they would mean on which system.
HOSTILE_NAMES = (
    "../secret.data", "a/../../secret.data", "./decoder.data", "decoder.data/", "/etc/passwd", "/decoder.data",
    "//server/share/x.data", "\\\\server\\share\\x.data", "\\\\?\\C:\\x.data", "..\\secret.data", "sub\\x.data",
    "C:\\x.data", "C:x.data", "c:/x.data", "file:///etc/x.data", "~/x.data", "~root.data", "$HOME.data", "%TEMP%.data",
    "x.data\0", "x\0.data", "x.data\n", "x.data ", " x.data", "x.data.", "x .data", ".hidden.data", "..", ".", "",
    "x.data::$DATA", "x.data:stream.data", "CON", "con.data", "NUL.json", "nul.tar.data", "Aux.txt", "prn.onnx",
    "COM1.data", "com0.data", "LPT9.html", "LICENSES/con", "LICENSES/nul.txt", "LICENSES/../x.data", "LICENSES/a/b.txt",
    "LICENSES", "LICENSES/", "licenses/x.txt", "sub/x.data", "manifest.json", "Manifest.JSON", "golden\u0301.data",
    "gold\u00e9n.data", "\uff0e\uff0e/x.data", "x\u202edata.json", "x\u200b.data", "-rf.data", "*.data", "x?.data",
    "decoder.engine", "decoder.plan", "decoder.trt", "libplugin.so", "plugin.dll", "plugin.dylib", "x.py", "x.pkl",
    "x.pt", "x.bin", "x.safetensors", "x.sh", "x.exe", "x.onnx.so", "x", "x.zip", "LICENSES/x.so", "LICENSES/x.py",
    "x" * 200 + ".data", "\ud800.data",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_a_hostile_name_is_refused_wherever_the_manifest_names_a_file(sealed_bundle, name):
    declared = json.loads((sealed_bundle / "manifest.json").read_text())["files"]["golden-0.data"]
    places = (
        ("$.files", lambda entries: entries["files"].update({name: declared})),
        ("$.parts.decoder.file", lambda entries: entries["parts"]["decoder"].update(file=name)),
        ("$.parts.decoder.source.", lambda entries: entries["parts"]["decoder"]["source"].update(licence_files=[name])),
        ("$.golden[0].latent", lambda entries: entries["golden"][0].update(latent=name)),
    )
    for place, change in places:
        entries = json.loads((sealed_bundle / "manifest.json").read_text())
        change(entries)
        with pytest.raises(BundleError) as caught:
            parse(json.dumps(entries).encode())
        assert place in str(caught.value)


UNDECLARED = ("extra.data", "decoder.engine", "plugin.so", ".hidden", "x.py", "LICENSES/more.txt", "LICENSES/x.so")


@pytest.mark.parametrize("name", UNDECLARED)
def test_an_undeclared_file_is_refused_whatever_it_is(bundle_folder, name):
    (bundle_folder / name).write_bytes(b"x")
    assert "does not declare" in refusal(bundle_folder)


def make_link(path: Path, outside: Path) -> None:
    shutil.copy(path, outside)
    path.unlink()
    path.symlink_to(outside)


def make_inner_link(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to("caption.data")


def make_hard_link(path: Path, outside: Path) -> None:
    os.link(path, outside)


def make_fifo(path: Path, outside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path, outside: Path) -> None:
    path.unlink()
    path.mkdir()


def make_device_link(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def make_dangling_link(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


DISGUISES = (make_link, make_inner_link, make_hard_link, make_fifo, make_folder, make_device_link, make_dangling_link)


@pytest.mark.skipif(os.name != "posix", reason="makes links and pipes as POSIX systems do")
@pytest.mark.parametrize("name", ["decoder.data", "decoder.onnx", "manifest.json", "LICENSES/nothing.txt"])
@pytest.mark.parametrize("disguise", DISGUISES)
def test_anything_but_a_plain_file_of_its_own_is_refused(bundle_folder, tmp_path, disguise, name):
    disguise(bundle_folder / name, tmp_path / "outside")
    assert any(word in refusal(bundle_folder) for word in ("link", "folder or a device"))


@pytest.mark.skipif(os.name != "posix", reason="makes links as POSIX systems do")
def test_a_licence_folder_elsewhere_is_refused(bundle_folder, tmp_path):
    (bundle_folder / "LICENSES").rename(tmp_path / "elsewhere")
    (bundle_folder / "LICENSES").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert "link" in refusal(bundle_folder)


@pytest.mark.parametrize("name", ["sub", "licenses", ".git", "LICENSES/sub"])
def test_other_folders_are_refused(bundle_folder, name):
    (bundle_folder / name).mkdir()
    assert "folder" in refusal(bundle_folder)


def test_a_junction_of_windows_counts_as_a_link():
    info = SimpleNamespace(st_mode=0o100644, st_nlink=1, st_file_attributes=0x400)
    assert "link" in bundle_module._complaint(info)


def test_a_bundle_may_be_reached_through_a_link(bundle_folder, tmp_path):
    (tmp_path / "latest").symlink_to(bundle_folder, target_is_directory=True)
    open_bundle(tmp_path / "latest").verify()


def test_names_that_differ_in_case_only_are_refused(bundle_folder):
    edit(bundle_folder, lambda entries: entries["files"].update({"DECODER.data": {"size": 1, "sha256": "0" * 64}}))
    assert "some systems take for one file" in refusal(bundle_folder)


def test_a_folder_with_endless_files_is_not_listed_to_its_end(bundle_folder, monkeypatch):
    monkeypatch.setattr(bundle_module, "MOST_FILES", 20)
    for i in range(30):
        (bundle_folder / f"{i}.data").touch()
    assert "more than 20 files" in refusal(bundle_folder)


def test_no_folder_no_manifest_and_no_permission_are_told_apart(tmp_path):
    assert "no such folder" in refusal(tmp_path / "absent")
    assert "not a bundle" in refusal(tmp_path)


def test_a_missing_truncated_or_longer_file_is_refused_on_opening(bundle_folder):
    data = bundle_folder / "decoder.data"
    content = data.read_bytes()
    for wrong in (content[:-1], content + b"x", b""):
        data.write_bytes(wrong)
        assert f"has {len(wrong)} bytes, must have 64" in refusal(bundle_folder)
    data.unlink()
    assert "decoder.data is missing" in refusal(bundle_folder)


def test_every_flipped_bit_is_noticed_by_verify_at_the_latest(bundle_folder):
    random = np.random.default_rng(0)
    files = sorted(f for f in bundle_folder.rglob("*") if f.is_file())
    bundle = open_bundle(bundle_folder)
    for _ in range(200):
        file = files[random.integers(len(files))]
        content = bytearray(file.read_bytes())
        content[random.integers(len(content))] ^= 1 << random.integers(8)
        original = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(BundleError):
            bundle.verify()
        file.write_bytes(original)
    bundle.verify()


def test_two_files_of_equal_size_that_changed_places_are_noticed(bundle_folder):
    one, other = bundle_folder / "decoder.data", bundle_folder / "caption.data"
    one.rename(bundle_folder / "swap")
    other.rename(one)
    (bundle_folder / "swap").rename(other)
    with pytest.raises(BundleError, match="changed since it was packed"):
        open_bundle(bundle_folder).verify()


def test_a_graph_is_looked_through_on_opening(bundle_folder, manifest):
    model = onnx.load(bundle_folder / "decoder.onnx", load_external_data=False)
    model.graph.node[0].op_type = "EPContext"
    (bundle_folder / "decoder.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"decoder\.onnx: it has an EPContext node"):
        seal(bundle_folder, manifest)


def test_a_part_may_read_declared_data_only(bundle_folder, manifest):
    entries = describe(bundle_folder)
    entries["decoder.data"] = FileEntry(63, entries["decoder.data"].sha256)
    (bundle_folder / "decoder.data").write_bytes(b"x" * 63)
    with pytest.raises(BundleError, match=r"beyond the end of decoder\.data"):
        seal(bundle_folder, manifest)


def test_sealing_refuses_what_opening_would(bundle_folder, manifest):
    (bundle_folder / "plugin.so").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"plugin\.so"):
        seal(bundle_folder, manifest)


def test_a_bundle_survives_being_written_again(bundle_folder):
    manifest = open_bundle(bundle_folder).manifest
    assert isinstance(manifest, Manifest)
    assert dump(manifest) == (bundle_folder / "manifest.json").read_bytes()


def test_the_code_of_the_documentation_runs(bundle_folder, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs/bundle-format.md").read_text(encoding="utf-8")
    monkeypatch.chdir(bundle_folder.parent)
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for block in blocks:
        exec(compile(block, "bundle-format.md", "exec"), {})
    assert len(blocks) == 2
    assert "transformer float32 nobody/nothing" in capsys.readouterr().out

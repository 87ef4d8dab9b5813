"""Forty ways out of a bundle, each refused before an engine library opens a file."""

import json
import os
import shutil
import socket

import onnx
import pytest
from sana_runtime.errors import BundleError
from sana_runtime.pipeline import Pipeline

# What a name could mean on some system; each is tried as a graph's data and as a declared file.
NAMES = (
    "../secret.data", "a/../../secret.data", "./../secret.data", "/etc/passwd", "//server/share/x.data",
    "\\\\server\\share\\x.data", "\\\\?\\C:\\x.data", "..\\secret.data", "C:\\x.data", "C:x.data",
    "file:///etc/passwd", "~/x.data", "decoder.data\0", "decoder.data\0.data", "CON", "nul.data", "COM1.data",
    "aux.txt", "x.data.", "x.data ", "x.data:stream", "/dev/zero", "/dev/stdin", "/proc/self/mem",
    "*/_ORT_MEM_ADDR_/*", "DECODER.DATA", "", ".",
)  # fmt: skip


def link_out(path, outside):
    path.unlink()
    path.symlink_to(outside)


def link_in(path, outside):
    path.unlink()
    path.symlink_to("caption.data")


def link_to_device(path, outside):
    path.unlink()
    path.symlink_to("/dev/zero")


def dangling_link(path, outside):
    path.unlink()
    path.symlink_to("/nowhere")


def hard_link(path, outside):
    path.unlink()
    os.link(outside, path)


def pipe(path, outside):
    path.unlink()
    os.mkfifo(path)


def folder_instead(path, outside):
    path.unlink()
    path.mkdir()


def unix_socket(path, outside):
    path.unlink()
    os.chdir(path.parent)  # such a name may have 108 bytes
    socket.socket(socket.AF_UNIX).bind(path.name)


def device(path, outside):
    path.unlink()
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only an administrator makes devices")


def linked_folder(path, outside):
    shutil.move(path.parent / "LICENSES", outside.parent / "elsewhere")
    (path.parent / "LICENSES").symlink_to(outside.parent / "elsewhere", target_is_directory=True)


def undeclared_engine(path, outside):
    (path.parent / "decoder.engine").write_bytes(b"ftrt")


def undeclared_library(path, outside):
    (path.parent / "libcustom.so").write_bytes(b"\x7fELF")


DISGUISES = (
    link_out, link_in, link_to_device, dangling_link, hard_link, pipe, folder_instead, unix_socket, device,
    linked_folder, undeclared_engine, undeclared_library,
)  # fmt: skip


@pytest.fixture
def refused(folder, monkeypatch, opened_files):
    """Opens the bundle as a caller would; fails if it opens, or if anything outside it is read on the way."""

    def reached(*arguments):
        raise AssertionError(f"an engine library was asked for {arguments}")

    def check():
        monkeypatch.setattr("sana_runtime.pipeline.open_session", reached)
        with opened_files() as files, pytest.raises(BundleError) as caught:
            Pipeline.open(folder).generate("a star")
        assert "\n" not in str(caught.value) and str(caught.value).isprintable()
        assert not [file for file in files if not file.startswith(str(folder))]

    return check


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_graph_that_names_data_elsewhere_is_refused(name, folder, declare, refused):
    model = onnx.load(folder / "decoder.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = name
    (folder / "decoder.onnx").write_bytes(model.SerializeToString())
    declare(folder)
    refused()


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_manifest_that_names_a_file_elsewhere_is_refused(name, folder, declare, refused):
    declare(folder, lambda entries: entries["files"].update({name: {"size": 64, "sha256": "0" * 64}}))
    refused()
    declare(folder, lambda entries: (entries["files"].pop(name), entries["parts"]["decoder"].update(file=name)))
    refused()


@pytest.mark.skipif(os.name != "posix", reason="makes links, pipes and devices as POSIX systems do")
@pytest.mark.parametrize("disguise", DISGUISES, ids=lambda disguise: disguise.__name__)
def test_what_is_not_a_plain_file_of_its_own_is_refused(disguise, folder, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    disguise(folder / "decoder.data", tmp_path / "secret.data")
    refused()


def test_the_same_bundle_undamaged_reaches_the_engine(folder, tiny_tokenizer, declare, monkeypatch):
    """The other tests could not fail if nothing ever came that far."""
    from sana_runtime.prompt import PromptRules
    from sana_runtime.tokenizer import Tokenizer

    shutil.copy(tiny_tokenizer / "tokenizer.json", folder)
    (folder / "prompt.json").write_text(PromptRules.derive(Tokenizer(folder / "tokenizer.json")).to_json())
    declare(folder)

    class Reached(Exception):
        pass

    def reached(*arguments):
        raise Reached

    monkeypatch.setattr("sana_runtime.pipeline.open_session", reached)
    with pytest.raises(Reached):
        Pipeline.open(folder).generate("a star")


def test_the_matrix_is_forty_cases_or_more(figure):
    cases = len(NAMES) + len(DISGUISES)
    figure(2, f"{cases} kinds of path, in {2 * len(NAMES) + len(DISGUISES)} places: all refused, no engine reached")
    assert cases >= 40 and json.dumps(NAMES)

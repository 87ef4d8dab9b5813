"""The arrows between packages point one way, packages import light, and a heavy library has one door."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "sana_runtime": ROOT / "runtime/sana_runtime",
    "sana_reference": ROOT / "reference/sana_reference",
    "sana_plugins": ROOT / "plugins/sana_plugins",
    "sana_calibration": ROOT / "calibration/sana_calibration",
    "sana_export": ROOT / "sana_export",
}
MAY_IMPORT = {
    "sana_runtime": set(),
    "sana_reference": {"sana_runtime"},
    "sana_plugins": set(),
    "sana_calibration": {"sana_runtime"},
    "sana_export": {"sana_runtime", "sana_reference", "sana_plugins", "sana_calibration"},
}
NEVER_AT_RUN_TIME = {
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "triton",
    "click",
    "diffusers",
    "safetensors",
}
# Where each heavy library may be imported: modules, or packages whose every module speaks it.
DOORS = {
    "openvino": ("sana_runtime.openvino_session", "sana_runtime.openvino_graph"),
    "onnxruntime": ("sana_runtime.onnxruntime_session",),
    "tokenizers": ("sana_runtime.tokenizer_library", "sana_reference.nano"),
    "safetensors": ("sana_reference.checkpoint", "sana_reference.nano"),
    "huggingface_hub": ("sana_reference.checkpoint",),
    "model_signing": ("sana_export.signing",),
    "transformers": (),
    "diffusers": (),
    "torch": ("sana_reference", "sana_plugins", "sana_export.tracing"),
    "triton": ("sana_plugins.kernels",),
    "click": ("sana_export.cli",),
}


def module_name(package: str, file: Path) -> str:
    parts = file.relative_to(FOLDERS[package]).with_suffix("").parts
    return ".".join((package, *(part for part in parts if part != "__init__")))


def modules() -> Iterator[tuple[str, str, ast.Module]]:
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            yield package, module_name(package, file), ast.parse(file.read_text())


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_packages_import_only_what_the_design_allows():
    for package, module, tree in modules():
        foreign = (imported(tree) & set(FOLDERS)) - {package} - MAY_IMPORT[package]
        assert not foreign, f"{module} imports {', '.join(sorted(foreign))}"


def test_the_runtime_never_names_a_build_library():
    for package, module, tree in modules():
        if package == "sana_runtime":
            assert not imported(tree) & NEVER_AT_RUN_TIME, module


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_library_has_one_door(library):
    for _, module, tree in modules():
        if library in imported(tree):
            assert any(module == door or module.startswith(f"{door}.") for door in DOORS[library]), (
                f"{module} imports {library}; only {', '.join(DOORS[library]) or 'no module'} may"
            )


@pytest.mark.parametrize("package", FOLDERS)
def test_importing_a_package_loads_no_heavy_library(package):
    heavy = sorted(NEVER_AT_RUN_TIME | {"openvino", "onnxruntime", "tensorrt_rtx", "cuda", "huggingface_hub"})
    program = f"import sys, {package}; print(*[name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split() == []
    )


def test_every_module_says_what_it_does():
    for _, module, tree in modules():
        assert ast.get_docstring(tree), f"{module} has no docstring"

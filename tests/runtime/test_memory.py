"""How much memory there is, read from the files in which a system and a container say so."""

from pathlib import Path

import pytest
from sana_runtime import memory

MIB = 1 << 20


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container that may take 100 MiB, has 80, of which 30 are files that the system only caches."""
    for name, said in (
        ("memory.max", f"{100 * MIB}\n"),
        ("memory.current", f"{80 * MIB}\n"),
        ("memory.stat", f"anon {50 * MIB}\ninactive_file {20 * MIB}\nactive_file {10 * MIB}\ninactive_anon 5\n"),
    ):
        (tmp_path / name).write_text(said)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return tmp_path


def test_a_container_leaves_its_limit_less_what_is_not_cache(container: Path) -> None:
    assert memory.available_memory() == 50 * MIB


def test_a_container_without_limit_leaves_what_the_system_has(container: Path) -> None:
    (container / "memory.max").write_text("max\n")
    found = memory.available_memory()
    assert found is not None
    assert found > 200 * MIB


@pytest.mark.parametrize("broken", ["memory.max", "memory.current"])
@pytest.mark.parametrize("said", ["", "many\n", "-"])
def test_a_container_that_says_nothing_useful_is_left_out(container: Path, broken: str, said: str) -> None:
    (container / broken).write_text(said)
    found = memory.available_memory()
    assert found is not None
    assert found > 200 * MIB

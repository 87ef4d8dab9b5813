"""A model on the hub is fetched with the files that are needed and no others; offline, from the cache alone."""

import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects
from sana_reference.checkpoint import load_checkpoint
from sana_runtime.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ID = "somebody/Sana_tiny_diffusers"


class Hub:
    """A hub of folders on disk, in place of the one on the network."""

    def __init__(self, remote: Path, cache: Path) -> None:
        self.remote, self.cache = remote, cache
        self.fetched: set[str] = set()
        self.revisions: list[str | None] = []

    def list_repo_files(self, repo: str, revision: str | None = None) -> list[str]:
        if not (self.remote / repo).is_dir():
            raise ConnectionError(f"404: no {repo}\nRequest ID: x")
        self.revisions.append(revision)
        return sorted(str(path.relative_to(self.remote / repo)) for path in (self.remote / repo).rglob("*.*"))

    def snapshot_download(self, repo: str, revision: str | None = None, allow_patterns: list[str] | None = None) -> str:
        snapshot = self.cache / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT
        for name in filter_repo_objects(self.list_repo_files(repo, revision), allow_patterns=allow_patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.remote / repo / name, snapshot / name)
            self.fetched.add(name)
        return str(snapshot)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub."""
    hub = Hub(tmp_path / "remote", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


@pytest.fixture
def remote(hub, tiny_sana, written):
    """A repository as the released ones are: two variants of each part, a demo, and old formats."""
    folder = Path(shutil.copytree(tiny_sana, hub.remote / ID))
    for part in ("transformer", "vae"):
        plain = folder / part / "diffusion_pytorch_model.safetensors"
        shutil.copy(plain, plain.with_suffix(".fp16.safetensors"))
        plain.with_suffix(".bin").write_bytes(b"old")
    written("sana")[1].text_encoder.save_pretrained(folder / "text_encoder", variant="fp16", max_shard_size="100KB")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "LICENSE.txt").write_text("MIT")
    (folder / "asset").mkdir()
    (folder / "asset" / "demo.png").write_bytes(b"picture")
    (folder / "tokenizer" / "tokenizer.model").write_bytes(b"sentencepiece")
    return folder


def weights(names: set[str]) -> set[str]:
    return {name for name in names if name.endswith((".safetensors", ".bin", ".pth"))}


SMALL = {
    "model_index.json",
    "README.md",
    "LICENSE.txt",
    "scheduler/scheduler_config.json",
    "transformer/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
}


def test_only_the_plain_weights_and_small_files_are_fetched(hub, remote):
    checkpoint = load_checkpoint(ID)
    assert hub.fetched == SMALL | {
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    assert checkpoint.config.name == "tiny"
    assert checkpoint.revision == COMMIT
    assert checkpoint.licence.fields == {"license": "mit"}
    assert checkpoint.licence.texts == {"LICENSE.txt": "MIT"}


def test_a_variant_is_fetched_instead_of_the_plain_weights(hub, remote):
    checkpoint = load_checkpoint(ID, variant="fp16", revision="main")
    shards = {name for name in hub.list_repo_files(ID) if "text_encoder/model.fp16-" in name}
    assert len(shards) > 1
    assert weights(hub.fetched) == shards | {
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }
    assert "text_encoder/model.safetensors.index.fp16.json" in hub.fetched
    assert "main" in hub.revisions
    checkpoint.text_encoder()


def test_a_repository_of_one_file_and_parts_from_others(hub, remote, tiny_pth, tiny_efficientvit):
    (hub.remote / "nv/Sana_tiny/checkpoints").mkdir(parents=True)
    shutil.copy(tiny_pth, hub.remote / "nv/Sana_tiny/checkpoints/Sana_tiny.pth")
    gemma = Path(shutil.copytree(remote / "text_encoder", hub.remote / "nv/gemma"))
    shutil.copy(remote / "tokenizer" / "tokenizer.json", gemma)
    shutil.copytree(remote / "vae", hub.remote / "mit/dc-ae")
    checkpoint = load_checkpoint("nv/Sana_tiny", autoencoder="mit/dc-ae", text_encoder="nv/gemma")
    assert weights(hub.fetched) == {
        "checkpoints/Sana_tiny.pth",
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
    }
    assert checkpoint.config.name == "tiny"
    assert checkpoint.revision == COMMIT
    assert checkpoint.tokenizer.name == "tokenizer.json"
    checkpoint.autoencoder()
    checkpoint.text_encoder()


def test_a_repository_of_several_files_is_refused(hub, tiny_pth):
    folder = hub.remote / "nv/Several"
    folder.mkdir(parents=True)
    for name in ("a.pth", "b.pth"):
        shutil.copy(tiny_pth, folder / name)
    with pytest.raises(CheckpointError, match=r"nv/Several holds 2 \.pth files .* give its path"):
        load_checkpoint("nv/Several")


def test_a_name_the_hub_does_not_know_is_one_clear_line(hub):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint("nobody/nothing")
    assert str(caught.value).startswith(
        "nobody/nothing is neither a local path nor a model to be had from the hub (404: no nobody/nothing); check"
    )
    assert "\n" not in str(caught.value)


def test_a_local_folder_of_that_name_comes_first(hub, tiny_sana, tmp_path, monkeypatch):
    shutil.copytree(tiny_sana, tmp_path / "here" / "sana")
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint("here/sana").where == Path("here/sana")
    assert not hub.revisions


@pytest.fixture
def offline_cache(tmp_path, monkeypatch):
    """The real library, told to stay offline, with a cache of our own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path / f"models--{ID.replace('/', '--')}"


def test_offline_the_cache_is_enough(offline_cache, tiny_sana):
    shutil.copytree(tiny_sana, offline_cache / "snapshots" / COMMIT)
    (offline_cache / "refs").mkdir()
    (offline_cache / "refs" / "main").write_text(COMMIT)
    checkpoint = load_checkpoint(ID)
    assert checkpoint.where == offline_cache / "snapshots" / COMMIT
    assert checkpoint.revision == COMMIT


def test_offline_without_a_cache_is_one_clear_line(offline_cache):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(ID)
    assert str(caught.value).startswith(f"{ID} is neither a local path nor a model to be had from the hub (")
    assert "\n" not in str(caught.value)


def test_without_the_hubs_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"the hub needs huggingface_hub; pip install 'sana-export\[build\]'"):
        load_checkpoint(ID)

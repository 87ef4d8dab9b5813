"""Bundles and manifests damaged at random: each opens or is refused in one line, and nothing outside it is read."""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import onnx
import psutil
import pytest
from sana_runtime.bundle import open_bundle
from sana_runtime.errors import BundleError
from sana_runtime.manifest import parse
from sana_runtime.onnx_guard import guard


def outcome(read, content):
    """Whether it was accepted; anything but a refusal in one short line fails."""
    try:
        read(content)
    except BundleError as error:
        assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 600
        return False
    return True


def test_mutated_manifests_are_manifests_or_refused(folder, scrambled, mutated, vouched, times, figure):
    count, generator = times(1500, 200_000, 1_000_000), random.Random(31)
    text = (folder / "manifest.json").read_bytes()
    entries, accepted, slowest = json.loads(text), 0, 0.0
    for i in range(count):
        mutant = vouched(mutated(entries, generator)) if i % 2 else scrambled(text, generator)
        start = time.process_time()
        accepted += outcome(parse, mutant)
        slowest = max(slowest, time.process_time() - start)
    figure(1, f"{count:,} mutated manifests: 0 crashes, {accepted:,} accepted, the slowest {1e3 * slowest:.0f} ms")
    assert count / 100 < accepted < count / 2


class Damage:
    """Ways to damage a bundle's folder, each undone afterwards."""

    def __init__(self, folder, declare, scrambled, mutated, seed):
        self.folder, self.declare, self.scrambled, self.mutated = folder, declare, scrambled, mutated
        self.random = random.Random(seed)
        self.whole = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        self.names = sorted(self.whole)

    def once(self):
        kind = self.random.choice((self.bytes, self.bytes, self.declared, self.declared, self.entry, self.disk))
        kind()

    def bytes(self):
        name = self.random.choice(self.names)
        (self.folder / name).write_bytes(self.scrambled(self.whole[name], self.random))

    def declared(self):
        """A graph or another file damaged, with the manifest telling its new size: the guard has to see it."""
        name = self.random.choice([name for name in self.names if name.suffix in (".onnx", ".data", ".json")])
        if name.name != "manifest.json":
            (self.folder / name).write_bytes(self.scrambled(self.whole[name], self.random))
        self.declare(self.folder)

    def entry(self):
        self.declare(self.folder, lambda entries: entries.update(self.mutated(dict(entries), self.random)))

    def disk(self):
        name, other = (self.folder / self.random.choice(self.names) for _ in range(2))
        self.random.choice(
            (
                name.unlink,
                lambda: os.truncate(name, self.random.randrange(1 + name.stat().st_size)),
                lambda: name.rename(
                    name.with_name(self.random.choice(("x.data", "x.so", "..x", "con.data", "X.ONNX")))
                ),
                lambda: (
                    name.unlink(),
                    name.symlink_to(self.random.choice((other, self.folder.parent / "secret.data"))),
                ),
                lambda: (name.unlink(), other.exists() and os.link(other, name)),
                lambda: shutil.copy(other, name) if other != name else None,
                lambda: (name.unlink(), name.mkdir()),
            )
        )()

    def undo(self):
        there = {file.relative_to(self.folder): file for file in self.folder.rglob("*")}
        for name, file in there.items():
            if file.is_symlink() or (name not in self.whole and str(name) != "LICENSES"):
                shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
            elif name in self.whole and (file.is_dir() or file.stat().st_nlink > 1):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        for name, content in self.whole.items():
            file = self.folder / name
            if not file.is_file() or file.read_bytes() != content:
                file.write_bytes(content)


def test_mutated_bundles_open_or_are_refused_and_read_nothing_outside(
    folder, declare, scrambled, mutated, opened_files, times, figure
):
    count = times(800, 20_000, 100_000)
    damage = Damage(folder, declare, scrambled, mutated, 32)
    process, accepted, escapes = psutil.Process(), 0, set()
    before = most = process.memory_info().rss
    for i in range(count):
        damage.once()
        with opened_files() as files:
            accepted += outcome(lambda folder: open_bundle(folder), folder)
        escapes |= {file for file in files if not file.startswith(f"{folder}{os.sep}")}
        damage.undo()
        most = process.memory_info().rss if i % 50 == 0 and process.memory_info().rss > most else most
    grown = (most - before) / 1e6
    figure(1, f"{count:,} mutated bundles: 0 crashes, {len(escapes)} escapes, {accepted:,} opened, +{grown:.0f} MB")
    assert not escapes and grown < 512 and 0 < accepted < count
    open_bundle(folder).verify()


LOADER = """
import os, sys
from pathlib import Path
from sana_runtime.errors import SanaError
from sana_runtime.session import Device, SessionOptions, open_session

null = os.open(os.devnull, os.O_WRONLY)
os.dup2(null, 2)
for line in sys.stdin:
    try:
        open_session(Path(line.strip()), Device(sys.argv[1]), SessionOptions(threads=1))
        print("loads", flush=True)
    except SanaError as error:
        print("refused", "\\n" in str(error), flush=True)
"""


@pytest.mark.parametrize("device", ["onnxruntime", "cpu"])
def test_mutated_graphs_that_pass_the_guard_do_not_kill_an_engine(
    device, folder, declare, scrambled, times, figure, tmp_path
):
    """Memory safety is the engine's own promise; this says how far it was seen to keep it."""
    count, generator, deaths, loaded = times(60, 2000, 20_000), random.Random(33), 0, 0
    model = onnx.load(folder / "decoder.onnx", load_external_data=False)
    model.graph.node[1].CopyFrom(onnx.helper.make_node("Add", ["product", "bias"], ["mixed"]))  # OpenVINO has its own
    original = model.SerializeToString()
    child = None
    for _ in range(count):
        mutant = passing(folder / "decoder.onnx", original, scrambled, generator)
        child = child or subprocess.Popen(
            [sys.executable, "-c", LOADER, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        child.stdin.write(f"{mutant}\n")
        child.stdin.flush()
        answer = child.stdout.readline().split()
        if not answer:
            deaths += 1
            kept = tmp_path / f"deadly-{deaths}.onnx"
            shutil.copy(mutant, kept)
            child.wait()
            print(f"process died with {child.returncode}: {kept}")
            child = None
            continue
        loaded += answer[0] == "loads"
        assert answer[1:] in ([], ["False"]), "a refusal is one line"
    child.communicate()
    figure(1, f"{count:,} mutated graphs past the guard, loaded by {device}: {deaths} deaths, {loaded:,} loaded")
    assert deaths == 0


def passing(file, original, scrambled, generator):
    while True:
        file.write_bytes(scrambled(original, generator))
        try:
            guard(file, {"decoder.data": 64})
        except BundleError:
            continue
        return file

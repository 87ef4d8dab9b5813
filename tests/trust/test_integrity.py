"""Whatever is changed in a bundle is noticed, and a signature says whose it is."""

import random
import shutil
import subprocess
import sys

import pytest
from sana_runtime.bundle import open_bundle, seal
from sana_runtime.errors import BundleError, UsageError
from sana_runtime.manifest import parse

from sana_export.cli.main import main


def noticed(folder):
    try:
        open_bundle(folder).verify()
    except BundleError as error:
        assert "\n" not in str(error)
        return True
    return False


def files_of(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


def test_every_flipped_bit_and_every_truncation_is_noticed(folder, times, figure):
    generator, flips, cuts = random.Random(41), times(12, 200, 1000), times(6, 100, 100)
    tried = missed = 0
    files = files_of(folder)
    for file in files:
        original = file.read_bytes()
        for i in range(flips + cuts):
            mutant = bytearray(original)
            if i < flips:
                mutant[generator.randrange(len(mutant))] ^= 1 << generator.randrange(8)
            else:
                del mutant[generator.randrange(len(mutant)) :]
            file.write_bytes(mutant)
            tried += 1
            missed += not noticed(folder)
        file.write_bytes(original)
    figure(4, f"{flips} flipped bits and {cuts} truncations of each of {len(files)} files: {missed} missed")
    assert tried and not missed and not noticed(folder)


def test_every_flipped_bit_in_the_manifest_is_noticed(folder, times, figure):
    generator, count, missed = random.Random(42), times(300, 2000, 10_000), 0
    file = folder / "manifest.json"
    original = file.read_bytes()
    for _ in range(count):
        mutant = bytearray(original)
        mutant[generator.randrange(len(mutant))] ^= 1 << generator.randrange(8)
        file.write_bytes(mutant)
        missed += not noticed(folder)
    figure(4, f"{count} flipped bits in the manifest: {missed} missed")
    assert not missed


def test_swapped_added_removed_and_renamed_files_are_noticed(folder, figure):
    missed, tried = [], 0
    for file in files_of(folder):
        original = file.read_bytes()
        for other in files_of(folder):
            if other.read_bytes() != original:  # in a small bundle some files are equal
                tried += 1
                theirs = other.read_bytes()
                file.write_bytes(theirs)
                other.write_bytes(original)
                missed += [] if noticed(folder) else [("swapped", file, other)]
                file.write_bytes(original)
                other.write_bytes(theirs)
        renamed, added = file.with_name(f"x{file.name}"), file.with_name(f"y{file.name}")
        file.rename(renamed)
        missed += [] if noticed(folder) else [("renamed", file)]
        renamed.unlink()
        missed += [] if noticed(folder) else [("removed", file)]
        file.write_bytes(original)
        added.write_bytes(original)
        missed += [] if noticed(folder) else [("added", file)]
        added.unlink()
        tried += 3
    figure(4, f"{tried} swaps, additions, removals and renamings of files: {len(missed)} missed")
    assert not missed and not noticed(folder)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two pairs of private and public keys, as PEM files."""
    pytest.importorskip("model_signing", reason="the package model-signing is not installed")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder, pairs = tmp_path_factory.mktemp("keys"), []
    for name in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP256R1())
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        private.write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
        pairs.append((private, public))
    return pairs


def test_a_signature_holds_for_its_maker_and_its_content_only(folder, keys, figure):
    from sana_export.signing import check_signature, sign, signature_file

    (ours, our_public), (theirs, their_public) = keys
    assert sign(folder, ours) == signature_file(folder)
    check_signature(folder, our_public)
    with pytest.raises(BundleError, match="is not what the owner of"):
        check_signature(folder, their_public)

    old = signature_file(folder).read_bytes()
    (folder / "decoder.data").write_bytes(bytes(64))
    manifest = parse((folder / "manifest.json").read_bytes())
    seal(folder, manifest)  # new content, right in itself
    with pytest.raises(BundleError, match="is not what the owner of"):
        check_signature(folder, our_public)

    signature_file(folder).unlink()
    with pytest.raises(BundleError, match="has no signature"):
        check_signature(folder, our_public)
    sign(folder, theirs)  # a stranger signs it anew
    with pytest.raises(BundleError, match="is not what the owner of"):
        check_signature(folder, our_public)
    for damage in (old[: len(old) // 2], b"{}", b"", old.replace(b'"', b"'")):
        signature_file(folder).write_bytes(damage)
        with pytest.raises(BundleError, match="is not what the owner of"):
            check_signature(folder, our_public)
    figure(5, "wrong key, stripped signature, old signature on new content, another's, 4 damaged ones: 8/8 refused")


def test_files_beside_those_that_were_signed_are_refused(folder, keys):
    from sana_export.signing import check_signature, sign

    sign(folder, keys[0][0])
    (folder / "more.data").write_bytes(b"x")
    with pytest.raises(BundleError, match="does not declare"):
        check_signature(folder, keys[0][1])


def test_a_signature_of_gigabytes_is_refused_before_it_is_read(folder, keys):
    from sana_export.signing import check_signature, signature_file

    with signature_file(folder).open("wb") as file:
        file.truncate(8 << 30)  # without taking room on the disk
    with pytest.raises(BundleError, match="so it is no signature"):
        check_signature(folder, keys[0][1])


def test_signing_that_is_interrupted_leaves_the_old_signature(folder, keys, monkeypatch):
    from model_signing import signing

    from sana_export.signing import check_signature, sign, signature_file

    sign(folder, keys[0][0])

    def half(self, bundle, target):
        target.write_bytes(b"{")
        raise KeyboardInterrupt

    monkeypatch.setattr(signing.Config, "sign", half)
    with pytest.raises(KeyboardInterrupt):
        sign(folder, keys[0][0])
    check_signature(folder, keys[0][1])
    assert not list(folder.parent.glob(f".{signature_file(folder).name}*"))


def test_what_is_no_key_is_said_to_be_none(folder, keys):
    from sana_export.signing import check_signature, sign

    (private, public), _ = keys
    for wrong in (public, folder / "decoder.data", folder / "absent"):
        with pytest.raises(UsageError, match="no private key"):
            sign(folder, wrong)
    sign(folder, private)
    for wrong in (private, folder / "decoder.data", folder / "absent"):
        with pytest.raises(UsageError, match="no public key"):
            check_signature(folder, wrong)


def status(*arguments):
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code


def test_verify_refuses_what_is_not_signed_when_told_to(folder, keys, capsys):
    (private, public), (_, other) = keys
    assert status("verify", folder, "--require-signature") == 2
    assert "--public-key" in capsys.readouterr().err
    assert status("verify", folder, "--require-signature", "--public-key", public) == 3
    assert "has no signature" in capsys.readouterr().err
    assert status("sign", folder, "--key", private) == 0
    assert status("verify", folder, "--public-key", other) == 3
    assert "is not what the owner" in capsys.readouterr().err
    shutil.rmtree(folder)


def test_signing_and_checking_need_no_network(folder, keys):
    program = (
        "import socket, sys; from pathlib import Path\n"
        "def refuse(*arguments): raise SystemExit('the network was asked for')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
        "from sana_export.signing import check_signature, sign\n"
        "sign(Path(sys.argv[1]), Path(sys.argv[2])); check_signature(Path(sys.argv[1]), Path(sys.argv[3]))\n"
    )
    subprocess.run([sys.executable, "-c", program, folder, *keys[0]], check=True, timeout=300)

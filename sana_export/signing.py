"""Say who made a bundle, and check it: the one door to the `model-signing` package, with keys and without a network.

A signature covers every file of a bundle by its digest and lies beside it, because a bundle holds declared files only.
It has the format of the OpenSSF model signing specification, so that other tools can check it too.
"""

import os
from pathlib import Path

from sana_runtime.bundle import open_bundle
from sana_runtime.errors import BackendError, BundleError, UsageError

__all__ = ["check_signature", "sign", "signature_file"]

LARGEST = 4 << 20  # bytes of a signature, which is read whole; one of 500 files has 100,000


def signature_file(bundle: Path) -> Path:
    """Where the signature of `bundle` lies if nobody says otherwise."""
    bundle = bundle.absolute()
    return bundle.with_name(f"{bundle.name}.sig")


def sign(bundle: Path, key: Path, signature: Path | None = None) -> Path:
    """Sign the bundle with the private key in the PEM file `key`; returns the file that was written."""
    try:
        from model_signing import signing
    except ImportError as error:
        raise _missing(error) from None
    target = signature or signature_file(bundle)
    open_bundle(bundle).verify()
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=key)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{key} is no private key ({_line(error)}); give a PEM file of an elliptic curve") from error
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        config.sign(bundle, fresh)
        fresh.replace(target)  # whoever had a signature keeps it until the new one is whole
    finally:
        fresh.unlink(missing_ok=True)
    return target


def check_signature(bundle: Path, public_key: Path, signature: Path | None = None) -> None:
    """Raise BundleError unless the bundle is, file by file, what the owner of `public_key` signed."""
    try:
        from model_signing import verifying
    except ImportError as error:
        raise _missing(error) from None
    target = signature or signature_file(bundle)
    open_bundle(bundle)
    if not target.is_file():
        raise BundleError(f"{bundle} has no signature at {target}; get the one its maker published, or do not use it")
    if target.stat().st_size > LARGEST:
        raise BundleError(f"{target} has more than {LARGEST} bytes, so it is no signature; get it from its maker again")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{public_key} is no public key ({_line(error)}); give a PEM file") from error
    try:
        config.verify(bundle, target)
    except Exception as error:  # whatever is wrong with a signature, there is but one answer
        raise BundleError(
            f"{bundle} is not what the owner of {public_key} signed ({_line(error)}); do not use it"
        ) from error


def _line(error: Exception) -> str:
    return ascii(" ".join(str(error).split()) or type(error).__name__)[1:-1][:200]


def _missing(error: ImportError) -> BackendError:
    return BackendError(f"signatures need {error.name}; run `pip install 'sana-export[sign]'`")

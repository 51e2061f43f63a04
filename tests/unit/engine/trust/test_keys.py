"""Files with public keys: one PEM block in a regular file, told by a fingerprint that openssl gives too."""

import os
import subprocess
from pathlib import Path

import pytest

from reconciler.engine.trust.keys import KeyFileError, Keys, read_key
from tests.signing import Signer


def test_the_fingerprint_is_that_of_openssl(tmp_path: Path) -> None:
    signer = Signer()
    path = signer.public(tmp_path / "ci.pub")
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", str(path), "-outform", "DER"], check=True, capture_output=True
    ).stdout
    key = read_key(str(path))
    assert key.der == der
    assert key.fingerprint == signer.fingerprint


def test_text_around_the_block_is_allowed(tmp_path: Path) -> None:
    signer = Signer()
    path = tmp_path / "ci.pub"
    path.write_bytes(b"# of the build server\r\n" + signer.pem.replace(b"\n", b"\r\n") + b"\n")
    assert read_key(str(path)).fingerprint == signer.fingerprint


PEM = Signer().pem


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 PEM blocks"),
        (b"ssh-ed25519 AAAA", "0 PEM blocks"),
        (PEM + PEM, "2 PEM blocks"),
        (PEM + b"-----BEGIN PUBLIC KEY-----\n", "2 PEM blocks"),
        (PEM.replace(b"PUBLIC KEY", b"RSA PUBLIC KEY"), "holds a RSA PUBLIC KEY"),
        (PEM.replace(b"PUBLIC KEY", b"ENCRYPTED SIGSTORE PRIVATE KEY"), "PRIVATE KEY, expected a PUBLIC KEY"),
        (PEM.replace(b"PUBLIC KEY", b"CERTIFICATE"), "holds a CERTIFICATE"),
        (b"-----BEGIN PUBLIC KEY-----\n!!!!\n-----END PUBLIC KEY-----\n", "not base64"),
        (b"x" * 20_000, "more than 16384 bytes"),
    ],
)
def test_anything_else_is_refused_and_the_file_is_named(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "ci.pub"
    path.write_bytes(data)
    with pytest.raises(KeyFileError, match=said) as error:
        read_key(str(path))
    assert str(path) in str(error.value)


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, said in (("fifo", "no regular file"), ("none", "no such file"), (".", "no regular file")):
        with pytest.raises(KeyFileError, match=said):
            read_key(str(tmp_path / name))


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_key_that_others_may_write_is_nobodys(mode: int, tmp_path: Path) -> None:
    path = Signer().public(tmp_path / "ci.pub")
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="others than its owner may write it") as error:
        read_key(str(path))
    assert error.value.hint == f"run: chmod go-w {path}"


def test_a_key_that_is_replaced_or_goes_is_noticed(tmp_path: Path) -> None:
    keys, path = Keys(), tmp_path / "ci.pub"
    first, second = Signer(), Signer()
    first.public(path)
    for signer in (first, first, second):
        (tmp_path / "new").write_bytes(signer.pem)
        (tmp_path / "new").rename(path)
        found, wrong = keys.read([str(path)])
        assert [key.fingerprint for key in found] == [signer.fingerprint]
        assert wrong == []
    path.unlink()
    found, wrong = keys.read([str(path)])
    assert found == []
    assert "no such file" in str(wrong[0])

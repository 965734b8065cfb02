"""Secrets: digests of api keys, credentials for upstreams. No message and no repr here holds one.

A caller's key is known by its SHA-256 only. It is written as `sha256:<64 hex>`, or the plain secret
comes from the environment (`{env: NAME}`) or a file (`{file: PATH}`), where it does not end up in a
repository of configurations.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from meter_proxy.config.faults import did_you_mean

MAX_SECRET_BYTES = 4096  # longer than any header line that carries one

_DIGEST = re.compile(r"sha256:([0-9A-Fa-f]{64})\Z")
_FORMS = "sha256:<64 hex digits> (see `meter-proxy keys hash`), {env: NAME} or {file: PATH}"


def digest(secret: bytes) -> str:
    """The form in which a key's secret stands in the YAML: `sha256:<64 hex digits>`."""
    return f"sha256:{hashlib.sha256(secret).hexdigest()}"


def key_digest(value: Any, env: Mapping[str, str], base_dir: Path) -> bytes:
    """The 32 bytes by which one of a key's secrets is known."""
    if isinstance(value, bytes) and len(value) == hashlib.sha256().digest_size:
        return value
    if isinstance(value, str):
        if match := _DIGEST.match(value):
            return bytes.fromhex(match[1])
        if value.startswith("sha256:"):
            raise ValueError("the digest after sha256: must have 64 hex digits")
        raise ValueError("a secret in plain text is refused; write its digest, which `meter-proxy keys hash` prints")
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"must be {_FORMS}")
    ((form, name),) = value.items()
    if form not in ("env", "file"):
        raise ValueError(f"unknown key {form!r}{did_you_mean(form, ('env', 'file'))}; must be {_FORMS}")
    if not isinstance(name, str) or not name:
        raise ValueError(f"must be {_FORMS}")
    if form == "file":
        secret = from_file(name, base_dir).get_secret_value()
    elif name not in env:
        raise ValueError(f"environment variable {name} is not set")
    else:
        secret = _sendable(env[name], f"environment variable {name}")
    return hashlib.sha256(secret.encode()).digest()


def from_file(path: str, base_dir: Path) -> SecretStr:
    """Read a secret from a file, without the line end that editors leave after it."""
    try:
        with (base_dir / path).open("rb") as file:
            raw = file.read(MAX_SECRET_BYTES + 1)
    except OSError as exc:
        raise ValueError(f"cannot read {path}: {exc.strerror}") from None
    except ValueError:
        raise ValueError("is not a file's name") from None
    if len(raw) > MAX_SECRET_BYTES:
        raise ValueError(f"{path} holds more than {MAX_SECRET_BYTES} bytes")
    try:
        return SecretStr(_sendable(raw.decode("ascii"), path))
    except UnicodeDecodeError:
        raise ValueError(f"{path} holds characters that no HTTP header can carry") from None


def credential(value: Any) -> SecretStr | None:
    """A secret written as text; an empty one (`${VAR:-}`) counts as none."""
    if isinstance(value, SecretStr):
        return value
    if not isinstance(value, str):
        raise ValueError("must be text; put it in quotes")
    return SecretStr(_sendable(value, "the value")) if value else None


def is_bearer(authorization: str, token: str) -> bool:
    """Whether an `Authorization` header carries exactly this token; the scheme in any case, in constant time."""
    scheme, _, sent = authorization.partition(" ")
    is_right = hmac.compare_digest(sent.strip().encode("utf-8", "surrogateescape"), token.encode())
    return is_right and scheme.lower() == "bearer"


def _sendable(secret: str, source: str) -> str:
    """Refuse what no `Authorization` header could carry; a key that can never match helps nobody."""
    secret = secret.rstrip("\r\n")
    if not secret:
        raise ValueError(f"{source} is empty")
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise ValueError(f"{source} holds blanks or characters that no HTTP header can carry")
    return secret

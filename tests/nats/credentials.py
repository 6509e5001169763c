"""Keys, certificates and credentials for a server of a test, made when they are needed."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nkeys  # pyright: ignore[reportMissingTypeStubs]
import trustme

from examples.services.nats_server import HOST, Tls


@dataclass(frozen=True)
class Certificates:
    """Files in PEM: an authority, what the server shows, and what a client may show."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path

    def tls(self, *, verify: bool) -> Tls:
        """Return the server's side; with `verify`, clients must show their certificate."""
        return Tls(self.server_cert, self.server_key, self.ca if verify else None)


def certificates(folder: Path) -> Certificates:
    made = Certificates(*(folder / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(made.ca)
    for cert, key, name in (
        (made.server_cert, made.server_key, HOST),
        (made.client_cert, made.client_key, "worker@example.org"),
    ):
        issued = authority.issue_cert(name)
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
    return made


_nkeys = cast("Any", nkeys)  # some of its annotations are wrong, and most are not there


# --- nkeys ------------------------------------------------------------------------------------------------------------
def seed_of(prefix: int = nkeys.PREFIX_BYTE_USER) -> str:
    """Return the seed of a new key."""
    return bytes(_nkeys.encode_seed(os.urandom(32), prefix)).decode()


def public_key(seed: str) -> str:
    return bytes(_pair(seed).public_key).decode()


def _pair(seed: str) -> Any:
    return _nkeys.from_seed(bytearray(seed.encode()))


# --- credentials files: an operator's server, one account, one user ---------------------------------------------------
def operator_settings(credentials: Path) -> dict[str, Any]:
    """Return the settings of a server with one account that has JetStream; write the file of its only user."""
    operator, account, user, system = (
        seed_of(prefix)
        for prefix in (
            nkeys.PREFIX_BYTE_OPERATOR,
            nkeys.PREFIX_BYTE_ACCOUNT,
            nkeys.PREFIX_BYTE_USER,
            nkeys.PREFIX_BYTE_ACCOUNT,
        )
    )
    storage = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    limits = {**dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1), "wildcards": True}
    accounts = {
        public_key(account): _signed(operator, account, "account", {"limits": {**limits, **storage}}),
        public_key(system): _signed(operator, system, "account", {"limits": limits}),
    }
    token = _signed(account, user, "user", {"subs": -1, "data": -1, "payload": -1})
    credentials.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user}\n------END USER NKEY SEED------\n"
    )
    return {
        "operator": _signed(operator, operator, "operator", {}),
        "system_account": public_key(system),
        "resolver": "MEMORY",
        "resolver_preload": accounts,
    }


def _signed(issuer: str, subject: str, kind: str, more: Mapping[str, Any]) -> str:
    claims = {
        "jti": base64.b32encode(os.urandom(32)).decode().rstrip("="),
        "iat": 1_700_000_000,
        "iss": public_key(issuer),
        "name": kind,
        "sub": public_key(subject),
        "nats": {**more, "type": kind, "version": 2},
    }
    text = f"{_base64({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_base64(claims)}"
    signature = bytes(_pair(issuer).sign(text.encode()))
    return f"{text}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def _base64(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

"""Issuers of sessions, made for a test: real keys, real signatures, keys served on 127.0.0.1."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from joserfc import jwe
from joserfc.jwk import OctKey
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

AUTHJS_SECRET = "a secret of the app, as AUTH_SECRET"
AUTHJS_COOKIE = "__Secure-authjs.session-token"
SHARED_SECRET = "a-project-s-legacy-jwt-secret-of-forty-bytes"
APP_ORIGIN = "https://app.example.test"
CHUNK_CHARS = 3936  # Auth.js cuts a cookie's value at 4096 bytes less its attributes

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def to_pem(key: PrivateKey) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def to_jwk(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, kid: str) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey):
        jwk = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        return {**jwk, "kid": kid, "use": "sig", "alg": "RS256"}
    jwk = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**jwk, "kid": kid, "use": "sig", "alg": "ES256"}


def sign(claims: Mapping[str, Any], key: PrivateKey | str, algorithm: str, kid: str | None) -> str:
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(dict(claims), key, algorithm=algorithm, headers=headers)


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign_with_public_key_as_secret(claims: Mapping[str, Any], pem: str, kid: str) -> str:
    """The classic forgery, by hand: PyJWT itself refuses to make it."""
    header = json.dumps({"alg": "HS256", "typ": "JWT", "kid": kid}).encode()
    signed = f"{base64url(header)}.{base64url(json.dumps(dict(claims)).encode())}"
    mac = hmac.new(pem.encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64url(mac)}"


def change_payload(token: str, **changes: object) -> str:
    """The same token with other claims under the old signature."""
    header, payload, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return f"{header}.{base64url(json.dumps({**claims, **changes}).encode())}.{signature}"


def seal_cookie(
    claims: Mapping[str, Any] | str,
    *,
    secret: str = AUTHJS_SECRET,
    cookie: str = AUTHJS_COOKIE,
    enc: str = "A256CBC-HS512",
    **header: str,
) -> str:
    """A session as Auth.js seals it."""
    size = 64 if enc == "A256CBC-HS512" else 32
    info = f"Auth.js Generated Encryption Key ({cookie})".encode()
    key = HKDF(hashes.SHA256(), size, cookie.encode(), info).derive(secret.encode())
    return jwe.encrypt_compact(
        {"alg": "dir", "enc": enc, "kid": base64url(b"thumbprint"), **header},
        claims if isinstance(claims, str) else json.dumps(claims),
        OctKey.import_key(key),
        registry=jwe.JWERegistry(algorithms=["dir", enc, "DEF"]),
    )


def cut_in_chunks(value: str, cookie: str = AUTHJS_COOKIE) -> dict[str, str]:
    return {
        f"{cookie}.{number}": value[start : start + CHUNK_CHARS]
        for number, start in enumerate(range(0, len(value), CHUNK_CHARS))
    }


def without(claims: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in claims.items() if name not in names}


class KeyServer:
    """Serves a key set at any path, counts how often it was fetched, and can fail."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [to_jwk(RSA_KEY, "rsa-1"), to_jwk(EC_KEY, "ec-1")]
        self.status = 200
        self.body: bytes | None = None
        self.paths: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.paths.append(self.path)
                body = server.body
                if body is None:
                    body = json.dumps({"keys": server.keys}).encode()
                self.send_response(server.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                """Say nothing on the terminal."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def fetches(self) -> int:
        return len(self.paths)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def clerk_claims(self, **changes: object) -> dict[str, Any]:
        now_s = int(time.time())
        return {
            "iss": self.url,
            "sub": "user_2abc",
            "azp": APP_ORIGIN,
            "sid": "sess_1",
            "sts": "active",
            "v": 2,
            "o": {"id": "org_acme", "rol": "admin", "slg": "acme"},
            "iat": now_s,
            "nbf": now_s - 10,
            "exp": now_s + 3600,
            **changes,
        }

    def clerk_token(self, **changes: object) -> str:
        return sign(self.clerk_claims(**changes), RSA_KEY, "RS256", "rsa-1")

    def supabase_claims(self, **changes: object) -> dict[str, Any]:
        now_s = int(time.time())
        return {
            "iss": f"{self.url}/auth/v1",
            "sub": "0b7f3a52-9a53-4c1b-9d8e-6f2f2b1f7f10",
            "aud": "authenticated",
            "role": "authenticated",
            "is_anonymous": False,
            "app_metadata": {"provider": "email", "org_id": "acme"},
            "user_metadata": {"name": "Ada"},
            "iat": now_s,
            "exp": now_s + 3600,
            **changes,
        }

    def supabase_token(self, **changes: object) -> str:
        return sign(self.supabase_claims(**changes), EC_KEY, "ES256", "ec-1")


@contextmanager
def serve_keys() -> Iterator[KeyServer]:
    server = KeyServer()
    try:
        yield server
    finally:
        server.close()


def authjs_claims(**changes: object) -> dict[str, Any]:
    now_s = int(time.time())
    return {
        "sub": "u_9",
        "name": "Ada",
        "email": "ada@example.test",
        "org": "acme",
        "iat": now_s,
        "exp": now_s + 3600,
        "jti": "1",
        **changes,
    }


def app_claims(**changes: object) -> dict[str, Any]:
    now_s = int(time.time())
    return {
        "iss": "https://app.example.test",
        "aud": "meterline",
        "sub": "u_9",
        "org": "acme",
        "iat": now_s,
        "exp": now_s + 120,
        **changes,
    }

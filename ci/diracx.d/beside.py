"""What the DiracX server leans on: an S3 for its sandboxes, and an identity provider at which everybody is welcome.

beside.py FOLDER: ports as for serve.py. In a process of their own, so that they outlive a server that is killed.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey
from moto.server import ThreadedMotoServer

sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves it out
from ports import HERE, wait_until_free
from serve import CLIENT, SUBJECT, USER

KEY = RSAKey.generate_key(2048, parameters={"kid": "stub", "alg": "RS256", "use": "sig"})


class Provider(BaseHTTPRequestHandler):
    """OpenID Connect, without the question whether it is really you."""

    def log_message(self, *_: object) -> None:
        return

    def answer(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @property
    def me(self) -> str:
        host, port = self.server.server_address[:2]
        return f"http://{host}:{port}"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/.well-known/openid-configuration":
            places = {f"{name}_endpoint": f"{self.me}/{name}" for name in ("authorization", "token")}
            algorithms = {"id_token_signing_alg_values_supported": ["RS256"]}
            self.answer({"issuer": self.me, "jwks_uri": f"{self.me}/keys", **places, **algorithms})
        elif parts.path == "/keys":
            self.answer({"keys": [KEY.as_dict(private=False)]})
        elif parts.path == "/authorization":
            asked = parse_qs(parts.query)
            back = urlencode({"code": "welcome", "state": asked["state"][0]})
            self.send_response(302)
            self.send_header("Location", f"{asked['redirect_uri'][0]}?{back}")
            self.end_headers()
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        now = int(time.time())
        claims = {"iss": self.me, "aud": CLIENT, "sub": SUBJECT, "preferred_username": USER}
        token = jwt.encode({"alg": "RS256", "kid": "stub"}, {**claims, "iat": now, "exp": now + 3600}, KEY)
        self.answer({"access_token": "none", "token_type": "Bearer", "id_token": token})


def main() -> None:
    folder = Path(sys.argv[1])
    _, s3_port, provider_port = map(int, (folder / "ports").read_text().split())
    for port in (s3_port, provider_port):
        wait_until_free(port)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    ThreadedMotoServer(ip_address=HERE, port=s3_port, verbose=False).start()
    provider = ThreadingHTTPServer((HERE, provider_port), Provider)
    (folder / "beside.ready").touch()
    provider.serve_forever()


if __name__ == "__main__":
    main()

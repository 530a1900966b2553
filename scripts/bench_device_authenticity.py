"""Answers/s of DeviceAuthenticity; latency of Diameter.

The node has one worker and DeviceAuthenticity on one core, a SQLite store, and a list of 100,000 devices. Each question is about another
device, from 10,000 TACs. All questions have the same access token. Answers come from the store.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.beside import Clients, Latency, clients_report, latency_report
from benchmark.measure import begin, finish, say
from benchmark.servers import free_port
from benchmark.site import loaded
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc import jwk, jws

from eir.interfaces.device_authenticity.settings import AUTHENTICITY_SCOPE

QUESTIONS = 100_000
CONNECTIONS, AUDIENCE, LASTS_S = 64, "eir", 3600
P99_TIMES = 2.0
"""Maximum ratio of p99, the same as for N5g-eir."""


def main(arguments: Sequence[str]) -> int:
    """Run the part `device-authenticity` of scripts/bench."""
    options, on, how = begin("device-authenticity", __doc__, arguments, seconds=5, turns=3)
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made:
        folder = Path(made)
        site, _, questions = loaded(folder, options, questions=QUESTIONS)
        token, key = _token()
        (site.folder / "gateway.pem").write_bytes(key)
        (folder / "token").write_text(token)
        banks = Clients(
            f"http://127.0.0.1:{free_port()}", CONNECTIONS, folder / "answered", on.generator, (folder / "token",)
        )
        tokens = {"keys": "gateway.pem", "audience": AUDIENCE}
        device_authenticity = {"listen": banks.url, "from": "127.0.0.0/8", "rate_max": 1_000_000, "tokens": tokens}
        asked: list[dict[str, Any]] = []
        with site.server("eir", free_port(), cores=on.server, device_authenticity=device_authenticity) as eir:
            latency = Latency(eir, questions, how, on.generator)
            for turn in range(how.turns):
                p99_text = latency.measure(banks.asking(0, how))
                asked.append(banks.answered(0, how.seconds))
                say(f"turn {turn + 1}: {asked[-1]['answers_per_s']:,.0f} answers/s; {p99_text}")
    p99, p99_target, p99_text = latency_report([latency], "a full load of DeviceAuthenticity", P99_TIMES)
    document, rows_text = clients_report(asked, "answers", "200")
    text = rows_text + p99_text
    return finish("device-authenticity", {**document, "diameter_p99": p99}, [p99_target], options, text)


def _token() -> tuple[str, bytes]:
    """Return a token of the operator's gateway, and the public key that verifies it, in PEM."""
    private = generate_private_key(SECP256R1())
    key = jwk.import_key(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "EC")
    claims = {
        "iss": "gateway",
        "sub": "bank",
        "aud": AUDIENCE,
        "scope": AUTHENTICITY_SCOPE,
        "exp": int(time.time()) + LASTS_S,
    }
    token = jws.serialize_compact({"alg": "ES256", "typ": "JWT"}, json.dumps(claims), key, algorithms=["ES256"])
    return token, private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

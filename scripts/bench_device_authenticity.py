"""Answers/s of DeviceAuthenticity; latency of Diameter.

The node has one worker and DeviceAuthenticity on one core, over SQLite, and a list of 100,000 devices. Each question is about another
device, over 10,000 TACs, with one access token, and is answered from the store.
"""

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.beside import DIAMETER, Clients, p99_beside_us, p99_us
from benchmark.measure import at_most, begin, finish, say
from benchmark.servers import free_port
from benchmark.site import loaded
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc import jwk, jws

from eir.cli.table import table
from eir.interfaces.device_authenticity.settings import AUTHENTICITY_SCOPE

QUESTIONS = 100_000
CONNECTIONS, AUDIENCE, LASTS_S = 64, "eir", 3600
P99_TIMES = 2.0
"""As beside N5g-eir."""


def main(arguments: Sequence[str]) -> int:
    """The part `device-authenticity` of scripts/bench."""
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
        alone, beside = [], []
        with site.server("eir", free_port(), cores=on.server, device_authenticity=device_authenticity) as eir:
            for turn in range(how.turns):
                alone.append(p99_us(eir, questions, how, on.generator))
                beside.append(p99_beside_us(eir, questions, how, banks, 0))
                asked.append(banks.answered(0, how.seconds))
                say(
                    f"turn {turn + 1}: {asked[-1]['answers_per_s']:,.0f} answers/s; p99 of checks {alone[-1]:,.0f} us alone, {beside[-1]:,.0f} us beside them"
                )
    answered = sum((Counter(found["answers"]) for found in asked), Counter[str]())
    p99 = {"alone_us": round(statistics.median(alone), 1), "beside_us": round(statistics.median(beside), 1)}
    what = "p99 of Diameter beside a full load of DeviceAuthenticity, times its own"
    targets = [at_most(what, P99_TIMES, round(p99["beside_us"] / p99["alone_us"], 2))]
    rows = [
        {
            "answers_per_s": round(found["answers_per_s"]),
            "p50_ms": round(found["p50_ms"], 1),
            "p99_ms": round(found["p99_ms"], 1),
        }
        for found in asked
    ]
    text = table(rows, ("answers_per_s", "p50_ms", "p99_ms"), width=None)
    text += f"Diameter at {DIAMETER.rate:,.0f}/s: p99 {p99['alone_us']:,.0f} us alone, {p99['beside_us']:,.0f} us beside DeviceAuthenticity\n"
    document = {
        "measured": rows,
        "diameter_p99": p99,
        "wrong_answers": answered.total() - answered["200"],
        "answered": dict(answered),
    }
    return finish("device-authenticity", document, targets, options, text)


def _token() -> tuple[str, bytes]:
    """A token of the operator's gateway, and the public key that it is checked with, in PEM."""
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

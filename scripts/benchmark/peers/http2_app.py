"""http2_app.py PORT LIST: the smallest 5G EIR that Starlette under Hypercorn allows: a set of devices from a file, and one look-up."""

import asyncio
import re
import sys
from pathlib import Path

import uvloop
from hypercorn.asyncio import serve
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

PEI = re.compile(r"imei-[0-9]{15}|imeisv-[0-9]{16}")
listed: set[str] = set()


async def equipment_status(request: Request) -> JSONResponse:
    """Return the status of one device."""
    pei = request.query_params.get("pei", "")
    if PEI.fullmatch(pei) is None:
        return JSONResponse(
            {"status": 400, "cause": "MANDATORY_QUERY_PARAM_INCORRECT"}, 400, media_type="application/problem+json"
        )
    return JSONResponse({"status": "BLACKLISTED" if pei.partition("-")[2][:14] in listed else "WHITELISTED"})


if __name__ == "__main__":
    listed.update(line[:14] for line in Path(sys.argv[2]).read_text().splitlines()[1:])
    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    config.accesslog = None
    config.keep_alive_max_requests = 1 << 60  # else it closes each connection after a thousand
    app = Starlette(routes=[Route("/n5g-eir-eic/v1/equipment-status", equipment_status)])
    uvloop.install()
    asyncio.run(serve(app, config))

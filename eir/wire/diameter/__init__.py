"""Diameter node (RFC 6733): codec, connections without I/O, and a thin asyncio layer around them.

Programs can use this node without the rest of this project. `__all__` lists the public names; README.md in this folder shows an
application on top of them. The modules, in the order from socket to answer: link (bytes of one connection) → framing (messages)
→ peer (state machine; its table is in states) → serve (treatment of a request) → message and avp (codec) → grammar
(verification) → application → message (bytes of the answer), sent and counted by traffic.

`application` also has the commands of the base protocol, `dictionary` the AVPs, `result` the Result-Codes. `node` has the
listeners and the peer table; `admission` decides which connections of a peer may be open; `dialer` makes outgoing connections.
`watchdog` and `capabilities` implement the RFC sections of these names. `client` sends requests to one node. Peer
settings, limits and transports are in eir.wire.peers and eir.wire.transport.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eir.errors import DiameterError, EirError
    from eir.wire.diameter.application import Application, Command, application_id_avp
    from eir.wire.diameter.avp import Avp, encode, encode_text, encode_u32, key_of, text, u32_or
    from eir.wire.diameter.client import Client, connect
    from eir.wire.diameter.dictionary import BASE_DICTIONARY, Dictionary, read_avps
    from eir.wire.diameter.grammar import Grammar, read_grammar
    from eir.wire.diameter.message import Answer, Reply, Request
    from eir.wire.diameter.node import Node
    from eir.wire.peers.counts import Counts
    from eir.wire.peers.settings import Identity, Limits, PeerSettings
    from eir.wire.transport.settings import SctpSettings, TlsSettings

__all__ = [
    "BASE_DICTIONARY", "Answer", "Application", "Avp", "Client", "Command", "Counts", "DiameterError", "Dictionary", "EirError", "Grammar",
    "Identity", "Limits", "Node", "PeerSettings", "Reply", "Request", "SctpSettings", "TlsSettings", "application_id_avp", "connect",
    "encode", "encode_text", "encode_u32", "key_of", "read_avps", "read_grammar", "text", "u32_or",
]  # fmt: skip

_HOMES = {
    "application": {"Application", "Command", "application_id_avp"},
    "avp": {"Avp", "encode", "encode_text", "encode_u32", "key_of", "text", "u32_or"}, "client": {"Client", "connect"},
    "dictionary": {"BASE_DICTIONARY", "Dictionary", "read_avps"}, "grammar": {"Grammar", "read_grammar"}, "message": {"Answer", "Reply", "Request"},
    "node": {"Node"}, "eir.wire.peers.counts": {"Counts"},
    "eir.wire.peers.settings": {"Identity", "Limits", "PeerSettings"}, "eir.wire.transport.settings": {"SctpSettings", "TlsSettings"},
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: a program that needs only settings does not load sockets and TLS."""
    home = next(
        (module if "." in module else f"{__name__}.{module}" for module, names in _HOMES.items() if name in names), None
    )
    if home is None and name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home or "eir.errors"), name)

"""Outgoing connections of a node: connect, wait until the connection ends, wait Tc, repeat (RFC 6733 2.1, 5.6)."""

import asyncio
import random
import ssl
from collections.abc import Callable, Collection

from eir.errors import EirError
from eir.wire.diameter.link import DiameterConnection, DiameterOwner
from eir.wire.peers.settings import APPLICATIONS, PeerSettings
from eir.wire.transport import begin
from eir.wire.transport.endpoint import TLS, endpoint
from eir.wire.transport.settings import SctpSettings

CONNECT_TIMEOUT_S = 10.0
STAY_AWAY_S = 120.0
"""Seconds for which the node does not connect to a peer that refuses it, or would refuse it.

After each refused CER some peers restart their own wait (Tc, usually 6 to 30 s), and others stop: they connect to the node only
if the node waits for longer than that.
"""


class Dialer:
    """Tasks for outgoing connections, one per peer. A task connects only if `is_wanted` returns true for its peer.

    `failed` receives the reason if a connection could not be made.
    """

    def __init__(
        self, owner: DiameterOwner, is_wanted: Callable[[PeerSettings], bool],
        failed: Callable[[PeerSettings, Exception], None], stay_away_s: float = STAY_AWAY_S,
    ) -> None:  # fmt: skip
        self._owner, self.stay_away_s = owner, stay_away_s
        self._is_wanted = is_wanted
        self._failed = failed
        self._tasks: dict[PeerSettings, asyncio.Task[None]] = {}
        self._tls: ssl.SSLContext | None = None
        self._not_before: dict[PeerSettings, float] = {}
        """Time on the loop's clock before which the node does not connect to a peer."""
        self._sctp = SctpSettings()

    def dial(
        self, peers: Collection[PeerSettings], tls: ssl.SSLContext | None = None, sctp: SctpSettings | None = None
    ) -> None:  # fmt: skip
        """Replace the set of peers to connect to. `tls`: context for `tls://`. `sctp`: settings for `sctp://`."""
        self._tls, self._sctp = tls, sctp or self._sctp
        for settings in self._tasks.keys() - set(peers):
            self._tasks.pop(settings).cancel()
        for settings in peers:
            if settings not in self._tasks:
                if APPLICATIONS in settings.lenient:
                    # Such a peer refuses a CER with S13 and may stop connecting: its own CER must come
                    # first.
                    self.stay_away(settings)
                self._tasks[settings] = asyncio.get_running_loop().create_task(self._stay_connected(settings))

    def stay_away(self, settings: PeerSettings) -> None:
        """Make no connection to the peer for `stay_away_s`, because the peer has refused the node or would refuse it.

        The time also applies if the peer's entry is removed and added again.
        """
        now = asyncio.get_running_loop().time()
        held = {peer: until for peer, until in self._not_before.items() if until > now}
        self._not_before = held | {settings: now + self.stay_away_s}

    async def close(self) -> None:
        """Cancel the tasks of all peers, and wait for the end of the tasks."""
        tasks = list(self._tasks.values())
        self.dial(())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _stay_connected(self, settings: PeerSettings) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if (held_s := self._not_before.get(settings, 0.0) - loop.time()) > 0:
                await asyncio.sleep(held_s)
                continue
            if self._is_wanted(settings):
                await self._attempt(settings)
            # Tc; it also satisfies 5.4.3 after a DPR with BUSY or DO_NOT_WANT_TO_TALK_TO_YOU.
            await asyncio.sleep(settings.reconnect_after_s * random.uniform(0.9, 1.1))  # noqa: S311 - jitter is no secret

    async def _attempt(self, settings: PeerSettings) -> None:
        to = endpoint(settings.connect or "")
        link = DiameterConnection(self._owner, asyncio.get_running_loop(), settings)
        if to.scheme == TLS and self._tls is None:
            self._failed(settings, EirError("a connection over TLS needs a certificate"))
            return
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await begin.connect(link, to, self._tls, self._sctp)
        except OSError as e:
            self._failed(settings, e)
            return
        await asyncio.shield(link.closed)

"""freeDiameter as an agent in front of nodes: configuration, start and end."""

import os
import subprocess
import sys
from contextlib import contextmanager

from .node import until
from .patience import PATIENCE_S
from .servers import free_port
from .wire import REALM

DRA, DRA_REALM, EIR_REALM = "dra.dra.test", "dra.test", "eir.test"
IN_ITS_OWN_NETWORK = "EIR_TEST_OWN_NETWORK"


def has_an_address():
    """FreeDiameter does not start on a host whose only addresses are loopback's."""
    found = subprocess.run(["ip", "-o", "addr", "show", "scope", "global"], capture_output=True, text=True, check=True)
    return bool(found.stdout)


def in_a_network_of_its_own(test, *, always=False):
    """Run the test (file::name) again in a network where freeDiameter starts, or `always`; False if that is here already."""
    if (has_an_address() and not always) or IN_ITS_OWN_NETWORK in os.environ:
        return False
    link = "(ip link add eir0 type dummy || ip link add eir0 type veth peer name eir1)"
    make = f"ip link set lo up && {link} && ip addr add 192.0.2.1/24 dev eir0 && ip link set eir0 up"
    again = [sys.executable, "-m", "pytest", "-q", test]
    subprocess.run(
        ["unshare", "-n", "sh", "-c", f'{make} && exec "$@"', "sh", *again],
        check=True,
        env=os.environ | {IN_ITS_OWN_NETWORK: "1"},
    )
    return True


@contextmanager
def relay(
    folder, eirs, *, tls=None, expect=1, port=None, tc_s=6, relays=True, sctp=(), name=DRA, realm=DRA_REALM, label="dra", loads=(),
):  # fmt: skip
    """FreeDiameter between anyone of REALM and these nodes; its port. It shares requests out between the nodes.

    With `tls` (a section of a configuration: certificate, key, ca) it speaks TLS to them; its keys are in `folder`/keys.
    It is waited for until `expect` connections of it to each node are open. It connects again after `tc_s`, more or less. What
    `relays` not is an MME without S13: it has no application but its own, and finds none in common with a node. With `sctp` (addresses of
    the nodes) it speaks SCTP to them. `name` and `realm` are its own, `label` what the nodes call it. `loads`: further extensions, with their arguments.
    """
    port = port or free_port()
    routes, allowed, configuration = (folder / name for name in ("routes.conf", "allowed.conf", "relay.conf"))
    routes.write_text("".join(f'dr="{EIR_REALM}" : "{eir}" += 50 ;\n' for eir in eirs))
    allowed.write_text(f"ALLOW_IPSEC *.{REALM}\n")
    at = "".join(f'ConnectTo = "{address}"; ' for address in sctp or ("127.0.0.1",))
    peers = "".join(
        f'ConnectPeer = "{eir}" {{ {at}Port = {node.address[1]}; Realm = "{EIR_REALM}"; {"" if tls else "No_TLS; "}{"No_TCP; " if sctp else ""}}};\n'
        for eir, node in eirs.items()
    )
    if tls:
        peers += f'TLS_Cred = "{tls["certificate"]}", "{tls["key"]}";\nTLS_CA = "{tls["ca"]}";\n'
    loading = "".join(f"LoadExtension = {each};\n" for each in loads)
    configuration.write_text(
        f'Identity = "{name}";\nRealm = "{realm}";\nPort = {port};\nSecPort = 0;\nListenOn = "127.0.0.1";\nNo_IPv6;\n{"SCTP_streams = 8" if sctp else "No_SCTP"};\n'
        f'TwTimer = 6;\nTcTimer = {tc_s};\nLoadExtension = "rt_default.fdx" : "{routes}";\nLoadExtension = "acl_wl.fdx" : "{allowed}";\n'
        f'LoadExtension = "rt_load_balance.fdx";\n{"" if relays else "NoRelay;"}\n{loading}{peers}'
    )
    log = folder / "relay.log"
    with log.open("w") as stream:
        environment = os.environ | {"SSLKEYLOGFILE": str(folder / "keys")}
        process = subprocess.Popen(
            ["freeDiameterd", "-c", configuration], stdout=stream, stderr=stream, env=environment
        )

    def connected():
        """At both ends: until the agent has read our CEA it has nobody to hand a request to."""
        opened = log.read_text()
        is_open = all(f"-> 'STATE_OPEN'\t'{eir}'" in opened for eir in eirs)
        return all(node.status()["peers"][label] == expect for node in eirs.values()) and (
            is_open or not expect or not relays
        )

    try:
        until(lambda: process.poll() is not None or connected())
        assert process.poll() is None, log.read_text()
        yield port
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

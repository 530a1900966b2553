"""freeDiameter as the 3GPP AAA server of Wi-Fi calling, in its own realm (TS 29.273 clause 11)."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from simulated.agent import EIR_REALM, in_a_network_of_its_own, relay
from simulated.node import LISTED, UNLISTED, until
from simulated.patience import PATIENCE_S

AAA, AAA_REALM = "aaa1.aaa.test", "aaa.test"
IMSI = "001010000000001"
HEADERS = Path("/usr/include/freeDiameter/extension.h")
DICTIONARIES = ("dict_nasreq", "dict_dcca", "dict_dcca_3gpp")


@pytest.mark.skipif(not HEADERS.exists(), reason="libfreediameter-dev is not installed")
def test_an_aaa_server_is_answered_and_recorded_with_its_access(site, tmp_path):
    if in_a_network_of_its_own(f"{Path(__file__)}::test_an_aaa_server_is_answered_and_recorded_with_its_access"):
        return
    extension, fifo = tmp_path / "aaa.fdx", tmp_path / "devices"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", extension, Path(__file__).with_name("aaa.c")], check=True, timeout=PATIENCE_S
    )
    os.mkfifo(fifo)
    site.configure(
        identity={"host": "eir1.eir.test", "realm": EIR_REALM},
        peers=[{"name": "aaa", "host": AAA, "realm": AAA_REALM, "access": "wlan"}],
        lists={"stolen": {"signers": "signers"}}, policy={"rules": [{"list": "stolen", "answer": "blacklisted"}]},
        sightings={"subscribers": "full"},
    )  # fmt: skip
    site.load([LISTED])
    node = site.start()
    loads = [*(f'"{name}.fdx"' for name in DICTIONARIES), f'"{extension}" : "{fifo} {EIR_REALM}"']
    with relay(tmp_path, {"eir1.eir.test": node}, name=AAA, realm=AAA_REALM, label="aaa", relays=False, loads=loads):
        log = tmp_path / "relay.log"
        until(lambda: "-> 'STATE_OPEN'" in log.read_text())
        fifo.write_text(f"{LISTED} 0{IMSI}@nai.epc.mnc001.mcc001.3gppnetwork.org\n{UNLISTED} {IMSI}\n")
        answer = re.compile(r"aaa: (\w+) has Result-Code (\d+), Equipment-Status (\d+)")
        until(lambda: len(answer.findall(log.read_text())) == 2)
        assert sorted(answer.findall(log.read_text())) == sorted([(LISTED, "2001", "1"), (UNLISTED, "2001", "0")])
        for device in (LISTED, UNLISTED):
            (row,) = site.json("seen", device)["sightings"]
            assert (row["access"], row["peer"], row["origin_realm"], row["subscriber"]) == (
                "wlan",
                "aaa",
                AAA_REALM,
                IMSI,
            )
    assert "wlan" in site.eir("seen", LISTED).stdout

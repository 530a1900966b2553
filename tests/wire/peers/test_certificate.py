"""Names in a peer's certificate, in the form in which Python's ssl module tells them."""

import pytest

from eir.wire.transport.tls import names_of_peer

SUBJECT = ((("countryName", "XX"),), (("organizationName", "Operator"), ("commonName", "mme1.example")))


@pytest.mark.parametrize(
    ("alternative", "names"),
    [
        ((("DNS", "a.example"), ("DNS", "*.b.example")), ["a.example", "*.b.example"]), ((("IP Address", "192.0.2.1"),), ["mme1.example"]),
        ((), ["mme1.example"]),
    ],
)  # fmt: skip
def test_the_common_name_is_a_last_resort(alternative, names):
    assert names_of_peer({"subject": SUBJECT, "subjectAltName": alternative}) == names
    assert names_of_peer({"subjectAltName": alternative[:0]}) == []

"""Texts of configurations for tests, and the faults that are found in one."""

import pytest
from simulated.issuer import Issuer, jwks

from eir.config import load_config
from eir.errors import ConfigError

IDENTITY = "identity: {host: eir.epc, realm: epc}\n"
ONE_PEER = "peers: [{realm: epc, from: 127.0.0.0/8}]\n"
LISTS = "lists: {stolen: {signers: signers}}\n"
RULES = "policy: {rules: [{list: stolen, answer: blacklisted}]}\n"
GOOD = IDENTITY + ONE_PEER + LISTS + RULES
SIGNER = 'agency namespaces="eir-release" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFak\n'


def problems_of(path) -> list[tuple[int, str]]:
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert all(problem.file == str(path) for problem in refused.value.problems)
    return [(problem.line, problem.text) for problem in refused.value.problems]


def files_of_tokens(folder):
    """Write what the section `n5g.tokens` of the sample names, and the token of a list's source."""
    folder.mkdir(parents=True)
    (folder / "register").write_text("secret\n")
    (folder / "register").chmod(0o640)
    issuer = Issuer()
    (folder / "jwks.json").write_bytes(jwks(issuer))
    (folder / "nrf.pem").write_bytes(issuer.pem)

"""Any value under any key gets a configuration or a fault with its line, and never an error of another kind."""

import copy

import pytest
import yaml

from eir.config import load_config
from eir.config.keys import reference
from eir.errors import ConfigError

KEYS = [row["key"] for row in reference()]
VALUES = (None, True, -1, "", "x" * 300, "é\n", [], [1], ["a", "b"], {}, {"a": 1}, 10**30, float("nan"))
LEAST = {
    "identity": {"host": "eir.example", "realm": "example"},
    "peers": [{"realm": "example", "from": "127.0.0.0/8"}],
}


def put(document, key, value):
    """Put a value where a key like `peers[].host` or `lists.*.kind` stands."""
    *way, last = key.split(".")
    for part in way:
        name = "stolen" if part == "*" else part.removesuffix("[]")
        inner = document.setdefault(name, [{}] if part.endswith("[]") else {})
        document = inner[0] if part.endswith("[]") else inner
    document[last.removesuffix("[]")] = value


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_taken_or_refused(tmp_path, value):
    refused = []
    for key in KEYS:
        document = copy.deepcopy(LEAST)
        put(document, key, value)
        file = tmp_path / "eir.yaml"
        file.write_text(yaml.safe_dump(document))
        try:
            load_config(file)
        except ConfigError as error:
            refused.append(str(error))
    assert len(refused) > len(KEYS) / 4
    assert [error for error in refused if f"{file}:" not in error] == []

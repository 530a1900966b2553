"""A file of configuration in a folder of its own."""

import pytest
from configuration import SIGNER


@pytest.fixture
def write(tmp_path):
    (tmp_path / "signers").write_text(SIGNER)

    def written(text, name="eir.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written

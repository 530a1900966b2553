"""Memory files: they never change, and whoever maps one reads it through pages of 2 MB where the kernel makes them."""

import os
import re
from pathlib import Path

import pytest

from eir.lists.images.memory import HUGE_BYTES, STEP_BYTES, MappedFile, sealed, write_all

CONTENT = os.urandom(3 * HUGE_BYTES + 12_345)


@pytest.fixture
def descriptor():
    with sealed(len(CONTENT)) as made:
        write_all(made, CONTENT, 0)
    yield made
    os.close(made)


def in_large_pages():
    """Bytes of memory files that this process reads through large pages."""
    mappings = re.split(r"^VmFlags.*$", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    return sum(
        int(found[1]) << 10
        for each in mappings
        if "memfd:eir-list" in each and (found := re.search(r"ShmemPmdMapped: +(\d+) kB", each))
    )


def test_it_is_read_as_it_was_written_and_can_not_be_changed(descriptor):
    mapped = MappedFile(descriptor)
    assert (mapped.buffer == CONTENT, mapped.buffer.readonly) == (True, True)
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 1)


def test_it_is_in_large_pages_for_all_who_map_it(descriptor):
    before = in_large_pages()
    there = [MappedFile(descriptor) for _ in range(2)]
    assert all(mapped.buffer == CONTENT for mapped in there)
    if in_large_pages() == before:
        pytest.skip("this kernel does not make pages of 2 MB for a memory file")
    assert in_large_pages() - before == 2 * 3 * HUGE_BYTES  # the rest, which is less than such a page, stays as it is


def test_one_that_is_not_written_to_its_end_is_zeros_there():
    with sealed(HUGE_BYTES + 10) as made:
        write_all(made, b"some bytes", 7)
    assert MappedFile(made).buffer == bytes(7) + b"some bytes" + bytes(HUGE_BYTES - 7)
    os.close(made)


def test_it_goes_in_steps_and_is_there_again_for_whoever_reads_on(descriptor):
    mapped, done, steps = MappedFile(descriptor), 0, 0
    while done < len(mapped.buffer):
        done, steps = mapped.drop(done), steps + 1
    assert (done, steps) == (len(CONTENT), -(-len(CONTENT) // STEP_BYTES))
    assert mapped.buffer == CONTENT


def test_a_descriptor_that_cannot_be_mapped_is_an_error():
    read, write = os.pipe()
    with pytest.raises(OSError, match="cannot be mapped"):
        MappedFile(read)
    os.close(read)
    os.close(write)

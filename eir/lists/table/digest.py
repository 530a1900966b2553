"""Content digest of a list: the root of a tree of SHA-256.

A leaf is the content of 16 blocks, which are one TAC or 2^20 whole TACs. A node has up to 256 children and the digest of their numbers and
digests. The digest of a list does not depend on the list's past. A change costs only the leaves that it touches and the nodes above them. Days are not part of the digest. Reasons are part of it as texts, because their indexes depend on the past of a list.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from eir.lists.table.columns import BLOCKS_PER_TAC, DAYS, REASONS, Numbers, distinct
from eir.lists.table.table import EMPTY, Table

CHILD_BITS, LEVELS = 8, 6
"""Bits of a leaf's number for each level of nodes, and the number of levels."""
DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class DigestTree:
    """Digests of the leaves and nodes of a list."""

    levels: tuple[tuple[Numbers, Numbers], ...]
    """For each level, leaves first: the numbers of its nodes, ascending, and their digests (one row of 32 bytes each)."""

    @property
    def root(self) -> str:
        """Content digest: 64 hexadecimal digits."""
        _, digests = self.levels[-1]
        return digests.tobytes().hex() or hashlib.sha256().hexdigest()


def digest_tree(table: Table, reasons: Sequence[str]) -> DigestTree:
    """Build the digest tree of a table. `reasons`: texts by the index in the column of reasons."""
    return updated_tree(_NO_TREE, table, reasons, table.blocks)


def updated_tree(before: DigestTree, table: Table, reasons: Sequence[str], blocks: Numbers) -> DigestTree:
    """Build the digest tree of a table from that of the table before. `blocks`: numbers of all blocks in which they differ."""
    numbers = distinct(blocks >> np.uint64(BLOCKS_PER_TAC.bit_length() - 1))
    fresh = _leaf_digests(table, reasons, numbers)
    levels: list[tuple[Numbers, Numbers]] = []
    for level, present in enumerate(before.levels):
        if level:
            parents = distinct(numbers >> np.uint64(CHILD_BITS))
            fresh = _node_digests(*levels[-1], parents)
            numbers = parents
        levels.append(_replaced(*present, numbers, fresh))
    return DigestTree(tuple(levels))


def _replaced(numbers: Numbers, digests: Numbers, touched: Numbers, fresh: Sequence[bytes]) -> tuple[Numbers, Numbers]:
    """Replace the digests of the touched nodes; an empty digest removes the node."""
    kept = ~np.isin(numbers, touched)
    is_present = np.fromiter((bool(digest) for digest in fresh), bool, len(fresh))
    added = np.frombuffer(b"".join(fresh), "u1").reshape(-1, DIGEST_BYTES)
    all_numbers = np.concatenate((numbers[kept], touched[is_present]))
    order = np.argsort(all_numbers)
    return all_numbers[order], np.concatenate((digests[kept], added))[order]


def _node_digests(children: Numbers, digests: Numbers, parents: Numbers) -> list[bytes]:
    """Return the digest of each parent: SHA-256 of the number (1 byte) and the digest of each child; empty without children."""
    above = children >> np.uint64(CHILD_BITS)
    starts, ends = np.searchsorted(above, parents), np.searchsorted(above, parents, "right")
    records = np.empty((len(children), 1 + DIGEST_BYTES), "u1")
    records[:, 0] = children & np.uint64((1 << CHILD_BITS) - 1)
    records[:, 1:] = digests
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    return [hashlib.sha256(records[start:end].tobytes()).digest() if end > start else b"" for start, end in spans]


def _leaf_digests(table: Table, reasons: Sequence[str], numbers: Numbers) -> list[bytes]:
    """Return the digest of each leaf; empty for a leaf without rows.

    A leaf's bytes, little-endian: its number (8), a bit for each column that has values (1), for each block its number in the leaf (4) and
    its number of rows (4), the lower halves of the keys (2 each), then each such column; reasons as a table of texts and an index
    in it (1 each).
    """
    leaf_bits = np.uint64(BLOCKS_PER_TAC.bit_length() - 1)
    leaves = table.blocks >> leaf_bits
    firsts, lasts = np.searchsorted(leaves, numbers), np.searchsorted(leaves, numbers, "right")
    heads = np.empty((len(table.blocks), 2), "<u4")
    heads[:, 0] = table.blocks & np.uint64(BLOCKS_PER_TAC - 1)
    heads[:, 1] = np.diff(table.starts)
    head_bytes, low_bytes = heads.view("u1").ravel().data, _octets(table.lows)
    columns = [
        (index, _octets(values), values.itemsize)
        for index, values in enumerate(table.columns)
        if values is not None and index != DAYS
    ]
    spans = zip(
        numbers.tolist(),
        firsts.tolist(),
        lasts.tolist(),
        table.starts[firsts].tolist(),
        table.starts[lasts].tolist(),
        strict=True,
    )
    texts = tuple(reasons)
    digests = []
    for number, block, block_end, row, row_end in spans:
        if block == block_end:
            digests.append(b"")
            continue
        mask, parts = 0, [head_bytes[8 * block : 8 * block_end], low_bytes[2 * row : 2 * row_end]]
        for index, octets, width in columns:
            values = octets[width * row : width * row_end].tobytes()
            if values.count(0) == len(values):
                continue
            mask |= 1 << index
            if index == REASONS:
                table_bytes, translation = _local_reasons(_distinct(values), texts)
                parts += [memoryview(table_bytes), memoryview(values.translate(translation))]
            else:
                parts.append(memoryview(values))
        digests.append(hashlib.sha256(b"".join((number.to_bytes(8, "little"), bytes((mask,)), *parts))).digest())
    return digests


def _octets(values: Numbers) -> memoryview:
    """Return the bytes of an array."""
    return np.ascontiguousarray(values).view("u1").data


def _distinct(values: bytes) -> frozenset[int]:
    """Return the distinct values; a pass over all values for each of them, which is faster than a set of all."""
    distinct = set()
    while values:
        distinct.add(values[0])
        values = values.translate(None, values[:1])
    return frozenset(distinct)


@lru_cache(maxsize=4096)
def _local_reasons(used: frozenset[int], texts: tuple[str, ...]) -> tuple[bytes, bytes]:
    """Return the encoded texts of the used indexes in the order of the texts, and the translation to indexes in this order.

    Equal texts get the same index; an index without a text is an empty text.
    """
    text_of = {index: texts[index] if index < len(texts) else "" for index in used}
    ordered = sorted(set(text_of.values()))
    encoded = [text.encode() for text in ordered]
    table = len(encoded).to_bytes(2, "little") + b"".join(len(text).to_bytes(2, "little") + text for text in encoded)
    translation = bytearray(256)
    for index, text in text_of.items():
        translation[index] = ordered.index(text)
    return table, bytes(translation)


_NO_LEVEL = (EMPTY.blocks, np.empty((0, DIGEST_BYTES), "u1"))
_NO_TREE = DigestTree((_NO_LEVEL,) * (LEVELS + 1))
EMPTY_CONTENT = _NO_TREE.root
"""Content digest of an empty list."""

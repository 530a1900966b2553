"""Throughput and latency with and without the record of first sightings, its memory.

Three nodes answer the same questions in turns: devices on record, and 1 % listed ones. One node has a record and a rule
that asks it, one has the devices of the record as a plain list, and one has neither. All get 100 checks of new devices a second
meanwhile. Each device takes 3 bytes more in the record's image than in that of a plain list. The time is shown, too, for which a node compares devices that wait with the record.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmark.beside import Mme
from benchmark.measure import (
    COLUMNS,
    Case,
    Load,
    answers_per_s,
    at_least,
    at_most,
    begin,
    compared,
    finish,
    own_options,
    percentile,
    ratio,
    rows,
    wrong_answers,
)
from benchmark.questions import BLACKLISTED, QUICK_QUESTIONS, WHITELISTED, Keys, scattered
from benchmark.servers import PATIENCE_S, free_port
from benchmark.site import EIR, LIST, Site

from eir.checks.new_devices import COMPARED_PER_TURN, NewDevices
from eir.cli.output import table
from eir.lists.images.first_seen_image import first_seen_image
from eir.lists.images.image import Image
from eir.lists.images.index import FirstSeenList
from eir.lists.images.table_image import image_of
from eir.lists.log.change import Head
from eir.lists.record.first_days import DAY_S, sighted_rows
from eir.lists.record.settings import FIRST_SEEN
from eir.lists.table.columns import TableRows, rows_of
from eir.lists.table.table import table_of

ENTRIES, QUICK_ENTRIES, LISTED, TACS, QUESTIONS = 10_000_000, 50_000, 100_000, 20_000, 500_000
FULL, STEADY = Load(4, 256), Load(4, 4096, 20_000.0, on_wire=True)
WITH, PLAIN, WITHOUT = "with the record", "with a plain list", "without"
KNOWN = "known"
"""The plain list with the devices of the record."""
ANSWERS_MIN, P99_MAX, BYTES_MAX = 0.97, 1.2, 3.0
NEW_PER_S, FIRST_NEW, END_OF_NEW = 100, 99_100_000 * 10**6, 10**14
HITS, LOOK_S = 0.01, 0.2
IMSI = "001010123456789"


def main(arguments: Sequence[str]) -> int:
    """Run the part `first-seen` of scripts/bench."""
    own = own_options()
    own.add_argument("--entries", type=int, help=f"devices on record ({ENTRIES:,})")
    options, on, how = begin("first-seen", __doc__, arguments, own, seconds=5, turns=7)
    entries = options.entries or (QUICK_ENTRIES if options.quick else ENTRIES)
    record, listed = scattered(entries, min(TACS * 10, entries)), scattered(LISTED, TACS, seed=15)
    keys = np.setdiff1d(record.keys, listed.keys)
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made:
        folder = Path(made)
        questions = folder / "questions"
        _write_questions(questions, keys, listed.keys, QUICK_QUESTIONS if options.quick else QUESTIONS)
        sites = {
            name: Site(folder / place) for name, place in ((WITH, "record"), (PLAIN, "plain"), (WITHOUT, "without"))
        }
        for site in sites.values():
            site.load(site.release(listed.keys))
        rule = {"list": LIST, "answer": "blacklisted"}
        grace = {
            "first_seen": {"new_per_peer": "99999999/d"},
            "policy": {"rules": [rule, {"first_seen_within": "60d", "answer": "whitelisted"}]},
        }
        plain = {
            "lists": {name: {"signers": "signers"} for name in (LIST, KNOWN)},
            "policy": {"rules": [rule, {"list": KNOWN, "answer": "whitelisted"}]},
        }
        sites[PLAIN].load(sites[PLAIN].release(keys, name=KNOWN), **plain)
        import_s = _import(sites[WITH], folder / "days.csv", keys, grace)
        with (
            sites[WITH].server(WITH, free_port(), cores=on.server, **grace) as ours,
            sites[PLAIN].server(PLAIN, free_port(), cores=on.server, **plain) as listing,
            sites[WITHOUT].server(WITHOUT, free_port(), cores=on.server) as bare,
        ):
            cases = [
                Case(server.name, server, partial(_new_devices, server.port, on.generator))
                for server in (ours, listing, bare)
            ]
            results = compared(cases, (FULL, STEADY), questions, how, on.generator)
            on_record = _on_record(sites[WITH], ours.port, len(keys))
    answers = ratio(results, WITH, PLAIN, FULL, answers_per_s)
    answers_without = ratio(results, WITH, WITHOUT, FULL, answers_per_s)
    p99 = ratio(results, WITH, WITHOUT, STEADY, percentile("p99"))
    more_bytes, turn_ms = _bytes_more(keys), _turn_ms(keys)
    targets = [
        at_least(f"answers/s with the record to a plain list, {FULL}", ANSWERS_MIN, answers["median"]),
        at_most(f"99th percentile with the record to without, {STEADY}", P99_MAX, p99["median"]),
        at_most("bytes per device beyond a plain list", BYTES_MAX, more_bytes),
    ]
    measured: dict[str, Any] = {
        "measured": rows(results), "answers_ratio": answers, "answers_ratio_without": answers_without, "p99_ratio": p99, "entries": len(keys), "on_record": on_record,
        "import_s": round(import_s, 1), "bytes_more": more_bytes, "turn_ms": turn_ms, "wrong_answers": wrong_answers(results),
    }  # fmt: skip
    text = table(rows(results), COLUMNS, width=None) + (
        f"answers/s with the record to without any list of these devices: {answers_without['median']:g}\n"
        f"import of {len(keys):,} devices: {import_s:.1f} s; then {on_record:,} on record\n"
        f"{COMPARED_PER_TURN:,} waiting devices compared with the record: {turn_ms['all']:.1f} ms, {turn_ms['part']:.1f} ms between two pauses\n"
    )
    return finish("first-seen", measured, targets, options, text)


def _write_questions(path: Path, known: Keys, listed: Keys, count: int) -> None:
    """Write questions about devices on record, which are whitelisted, and about listed ones."""
    rng = np.random.default_rng(41)
    asked, is_hit = rng.choice(known, count), rng.random(count) < HITS
    asked[is_hit] = rng.choice(listed, int(is_hit.sum()))
    with path.open("w") as file:
        for key, hit in zip(asked.tolist(), is_hit.tolist(), strict=True):
            file.write(f"{key:014d}{(BLACKLISTED if hit else WHITELISTED).decode()}\n")


def _import(site: Site, file: Path, keys: Keys, settings: dict[str, Any]) -> float:
    """Import the devices, and return the duration in seconds."""
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    with file.open("w") as out:
        out.write("imei,first_seen\n")
        out.writelines(f"{key:014d},{day}\n" for key in keys.tolist())
    config, began = site.configure(0, **settings), time.perf_counter()
    subprocess.run([*EIR, "first-seen", "import", file, "-c", config], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _on_record(site: Site, port: int, before: int) -> int:
    """Wait until new devices are on record, and return the number of all."""
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        found = next(int(row["entries"]) for row in site.eir(port, "lists") if row["kind"] == FIRST_SEEN)
        if found > before:
            return found
        time.sleep(LOOK_S)
    raise RuntimeError("no new device came on record")


def _new_devices(port: int, on: set[int]) -> AbstractContextManager[None]:
    """Meanwhile an MME asks about new devices."""
    first = FIRST_NEW + int(time.monotonic() * 1000) % 10**8 * 1000
    return Mme(port, on, IMSI, range(first, END_OF_NEW), 1 / NEW_PER_S).asking()


def _bytes_more(keys: Keys) -> float:
    """Return the bytes of a device in the record's image beyond those in the image of a plain list."""
    record, plain = (
        first_seen_image(table_of(_rows(keys, int(time.time()) // DAY_S))),
        image_of(table_of(rows_of(keys))),
    )
    return round((_size(record) - _size(plain)) / len(keys), 2)


def _rows(keys: Keys, day: int) -> TableRows:
    return sighted_rows(keys.astype(np.uint64), day, day)


def _size(image: Image) -> int:
    return os.fstat(image.fileno()).st_size


def _turn_ms(keys: Keys) -> dict[str, float]:
    """Return two durations in milliseconds: of comparing the waiting devices with the record, each second, and of its longest step between two pauses."""
    now = time.time()
    record = FirstSeenList("first-seen", FIRST_SEEN, lambda: now)
    new = NewDevices(record, len(keys))
    chosen = np.random.default_rng(1).choice(keys, COMPARED_PER_TURN, replace=False).tolist()
    for key in chosen:
        new.add(key, "mme", "")
    record.replace(Head(kind=FIRST_SEEN), first_seen_image(table_of(_rows(keys, record.today))))
    began = time.perf_counter()
    parts = sum(1 for _ in new.remove_recorded()) + 1
    took = time.perf_counter() - began
    if record.fresh:
        raise RuntimeError(f"{len(record.fresh)} devices wait although they are on record")
    return {"all": round(took * 1000, 2), "part": round(took / parts * 1000, 2)}

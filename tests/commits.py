"""Changes of lists that tests append to a store directly, and the content of a store."""

from eir.lists.log.change import Change, Head, following
from eir.lists.log.store import LogEntry


def next_change(head, **fields):
    """Return a change after a head."""
    return Change(
        **{
            "generation": head.generation + 1, "before": head.digest, "time": "2026-12-02T08:00:00Z", "who": "eir@host", "what": "load",
            **fields,
        }
    )  # fmt: skip


async def commit(store, head=None, rows=b"rows", name="stolen", oldest=0, **fields):
    """Append a change after a head; return its head and change."""
    head = head or Head(kind="devices")
    change = next_change(head, **fields)
    after = following(head, change, entries=3, devices=3)
    await store.commit(name, after, LogEntry(change, rows), seen=head.digest, oldest=oldest)
    return after, change


async def commit_base(store, head=None, parts=(b"x", b"y"), name="stolen", **fields):
    """Stage parts, and append a change whose base they are."""
    part_id = f"{name}-{head.generation if head else 0}"
    await store.stage(name, part_id, parts)
    return await commit(store, head, name=name, base_id=part_id, base_parts=len(parts), **fields)


async def parts_of(store, part_id, name="stolen"):
    return [part async for part in store.base(name, part_id)]


async def everything(store, name="stolen"):
    """Return the heads, the log of a list, and the parts that its changes name."""
    log = await store.log(name, 0)
    parts = {part_id: await parts_of(store, part_id, name) for entry in log for part_id in entry.change.part_ids}
    return dict(await store.heads()), log, parts

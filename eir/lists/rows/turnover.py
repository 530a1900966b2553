"""Turnover of a list change: numbers of added and of removed devices, and the limits on them.

The difference of the sizes is not enough: two lists of the same size may have no device in common.
"""

from collections.abc import Collection

from eir.lists.log.writer import ComputedUpdate
from eir.lists.record.settings import SUBSCRIBERS, ListSettings
from eir.lists.table.table import devices_in_force


def exceeded_by(settings: ListSettings, computed: ComputedUpdate) -> dict[str, str]:
    """Return the limits that a computed change of a list exceeds, as `exceeded_limits`."""
    content, effect = computed.content, computed.effect
    come, gone = effect.devices_added, effect.devices_removed
    if max(come, gone) < settings.change_min:  # the devices in force are not counted for each row of a feed
        return {}
    # The table of a damaged list is unknown.
    devices = devices_in_force(content.table, computed.now) if len(content.table) else content.head.devices
    return exceeded_limits(settings, devices, come, gone)


def exceeded_limits(settings: ListSettings, devices: int, come: int, gone: int) -> dict[str, str]:
    """Return the limits (`shrink`, `growth`) that a change of a list exceeds, each with a message.

    Args:
        settings: settings of the list.
        devices: number of identifiers in force before the change.
        come: number of added identifiers.
        gone: number of removed identifiers.

    A number below `change_min` exceeds no limit.
    """
    excesses = {}
    limits = (("shrink", "go", gone, settings.shrink_max), ("growth", "come", come, settings.growth_max))
    for reason, verb, count, share_max in limits:
        share_most = int(round(share_max * devices, 6))
        most = max(settings.change_min - 1, share_most)
        if count > most:
            allowed = f"{most:,} may {verb} at most ({reason}_max {share_max:.1%}, change_min {settings.change_min:,})"
            excesses[reason] = f"{turnover(settings.kind, come, gone)}, and {devices:,} are in force: {allowed}"
    return excesses


def turnover(kind: str, come: int, gone: int) -> str:
    """Format the number of added and the number of removed devices (or subscribers) as a text for operators."""
    noun = SUBSCRIBERS if kind == SUBSCRIBERS else "devices"
    return f"{come:,} {noun} come, {gone:,} go"


def force_text(lifted: Collection[str]) -> str:
    """Return a text for operators that names the limits that `--force` lifted."""
    if not lifted:
        return "--force, which lifted no limit"
    return f"--force lifted the limit on {', '.join(lifted)}"

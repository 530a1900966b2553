"""Interfaces: protocols over which other systems check devices in this register or change its lists. Each interface is one folder."""

from importlib import import_module

from eir.interfaces.interface import Interface

FOLDERS = (
    "s13",
    "n5g",
    "gsup",
    "map",
    "feed",
    "desk",
    "device_authenticity",
)
INTERFACES: tuple[Interface, ...] = tuple(import_module(f"{__name__}.{folder}").INTERFACE for folder in FOLDERS)
"""All interfaces, in the order of listeners, keys and metrics. The first takes connections and URLs that no other names."""

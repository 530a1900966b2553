"""Lists in force for commands: read from the running node, or from the store if no node runs.

A difference between node, configuration file and store is reported. A node follows its store within 1 s, so a
difference is checked again before the report. Reasons and dates are not in a node's memory. They are read from the node's
copy of the list, or from the store, depending on which has the content of the node.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from eir.cli.access import acting_in, ask_node, other_config
from eir.cli.output import print_message
from eir.config import Config, Whereabouts, digests
from eir.errors import EirError, StoreError
from eir.lists.follow.list_reader import read_copy
from eir.lists.log.change import Head, decode
from eir.lists.log.reader import LoggedList, read_content
from eir.lists.log.store import LogStore
from eir.lists.record.in_force import load_in_force
from eir.lists.stores.open import COPIES, open_store
from eir.node.observe import control

NODE_S = 5.0
"""Seconds within which the node must answer."""
STORE_S = 5.0
"""Seconds within which the store must answer if the node has answered."""
LEVEL_S, LEVEL_EACH_S = 1.5, 0.1
"""Seconds that a node has to follow its store before a difference is reported, and seconds between two checks."""
TAKEN_OVER_S, TAKEN_OVER_EACH_S = 2.0, 0.05
"""Seconds that a load or a rollback waits for the node on its host to follow, and seconds between two checks."""

FromStore = Annotated[bool, typer.Option("--store", help="Ask the store, and not the running node.")]

Stored = Mapping[str, Head | StoreError | None]
"""Name of each list → its state in a store, the error that prevents its reading, or None if it was never loaded."""


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """Lists of a running node, and its answer to a command."""

    pid: int
    states: Mapping[str, Head]
    """States of the lists in the node's memory."""
    answer: Any
    """Result of the command; None for a command that only requests the lists."""
    notes: tuple[str, ...]
    """Differences between file, store and node, in words."""


def asked(
    config: Config | Whereabouts, command: str, *, store_only: bool, as_json: bool, **arguments: Any
) -> NodeAnswer | None:
    """Request the lists in force from the node that runs on the state folder; return None if the store must answer instead.

    Prints the source of the answer (not with `as_json`) and each difference to standard error.
    """
    node = None if store_only else _node(config, command, arguments)
    if node is not None:
        source = f"the running node (process {node.pid})"
    else:
        source = (
            "the store, as --store says"
            if store_only
            else f"the store, no node answers here{other_config(config.path)}"
        )
    if not as_json:
        print_message(f"from {source}")
    if node is not None:
        for note in node.notes:
            print_message(f"note: {note}")
    return node


def _node(config: Config | Whereabouts, command: str, arguments: Mapping[str, Any]) -> NodeAnswer | None:
    end = time.monotonic() + LEVEL_S
    while True:
        try:
            reply = control.ask(config.state, command, timeout_s=NODE_S, **arguments)
        except control.ControlAway:
            return None
        except control.ControlError as e:
            print_message(f"note: the running node could not be queried: {e}")
            return None
        states = heads_of(reply["lists"])
        stored = _stored(config, states)
        if isinstance(stored, EirError):
            differences = [f"the node answers from memory, because its store does not answer: {stored}"]
            break
        differences = _store_differences(states, stored)
        if not differences or time.monotonic() > end:
            break
        time.sleep(LEVEL_EACH_S)
    notes = _file_differences(config, reply["configuration"])
    notes += differences
    return NodeAnswer(reply["pid"], states, reply.get("answer"), tuple(notes))


def heads_of(documents: Mapping[str, Any]) -> dict[str, Head]:
    """Return the heads of lists from the documents in a node's answer."""
    return {name: decode(Head, json.dumps(document)) for name, document in documents.items()}


def _stored(config: Config | Whereabouts, states: Mapping[str, Head]) -> Stored | EirError:
    """Read from the store the state of all lists in the configuration and in `states`. If the store fails, return its error."""
    names = dict.fromkeys([*config.lists, *states])

    async def lookup() -> Stored:
        store = open_store(config.store, config.state, check=False, creates=False)
        try:
            async with asyncio.timeout(STORE_S):
                return await states_of(store, names)
        finally:
            await store.close()

    try:
        with acting_in(config.state):
            return asyncio.run(lookup())
    except EirError as e:
        return e
    except TimeoutError:
        return EirError(f"no answer in {STORE_S:g} s")


async def states_of(store: LogStore, names: Mapping[str, object]) -> dict[str, Head | StoreError | None]:
    """Return the state of each list in the store, or the error of a damaged list.

    Raises StoreError if no list is readable.
    """
    heads = await store.heads()
    read: dict[str, Head | StoreError | None] = {}
    for name in names:
        try:
            read[name] = heads.get(name)
        except StoreError as error:
            if error.cause != "corrupt":
                raise
            read[name] = error
    damaged = [state for state in read.values() if isinstance(state, StoreError)]
    if damaged and len(damaged) == len(read):  # the store is damaged, and not one of its lists
        raise damaged[0]
    return read


def _file_differences(config: Config | Whereabouts, node: Mapping[str, str]) -> list[str]:
    """Return messages about settings that differ between the configuration file and the node."""
    if isinstance(config, Whereabouts) and config.problems:
        return [f"{config.path} has errors (eir config); the node uses its previous configuration"]
    file = digests(config.shown)
    sections = [name for name in dict.fromkeys([*file, *node]) if file.get(name) != node.get(name)]
    if not sections:
        return []
    return [f"{config.path} differs from the node in {', '.join(sections)}; eir reload applies the file"]


def _store_differences(states: Mapping[str, Head], stored: Stored) -> list[str]:
    """Return messages about lists that differ between the store and the node."""
    notes = []
    for name, stored_state in stored.items():
        state = states.get(name)
        version = _version_text(state)
        if isinstance(stored_state, StoreError):
            notes.append(f"list {name} is damaged in the store ({stored_state}); the node answers by {version}")
        elif _version(stored_state) != _version(state):
            notes.append(f"the store has {_version_text(stored_state)} of {name}, the node answers by {version}")
    return notes


def _version(state: Head | None) -> tuple[int, str] | None:
    return None if state is None else (state.generation, state.content)


def _version_text(state: Head | None) -> str:
    if state is None:
        return "no release"
    return f"serial {state.serial} (generation {state.generation})" if state.serial else f"change {state.generation}"


def read_as_held(config: Config | Whereabouts, name: str, held: Head) -> LoggedList | None:
    """Return the content of a list that a node has in force, from the node's copy or from the store; None if both have other content."""

    async def read() -> LoggedList | None:
        store = open_store(config.store, config.state, check=False, creates=False)
        try:
            async with asyncio.timeout(STORE_S):
                head = (await store.heads()).get(name)
                return (
                    await read_content(store, name, head)
                    if head is not None and _version(head) == _version(held)
                    else None
                )
        except (StoreError, TimeoutError):
            return None
        finally:
            await store.close()

    with acting_in(config.state):
        copy = read_copy(config.state / COPIES, name)
        return copy if copy is not None and _version(copy.head) == _version(held) else asyncio.run(read())


def taken_over(config: Config | Whereabouts, loaded: Mapping[str, Head]) -> str:
    """Wait a few seconds until the node on this host uses newly loaded lists; return a message for the operator about the result.

    A list counts as taken over when the node's file of the lists in force also names its serial and content.
    """
    versions = {name: (each.serial, each.content) for name, each in loaded.items()}
    end = time.monotonic() + TAKEN_OVER_S
    try:
        while True:
            report = ask_node(config, "status")
            in_memory = {name: (row["serial"], row["digest"]) for name, row in report["lists"].items()}
            on_disk = {name: each[:2] for name, each in load_in_force(config.state).items()}
            behind = [
                name for name, each in versions.items() if (in_memory.get(name), on_disk.get(name)) != (each, each)
            ]
            node = f"the node on this host (process {report['pid']})"
            if not behind:
                return f"{node} has taken over {', '.join(loaded)}"
            if time.monotonic() > end:
                return f"{node} has not taken over {', '.join(behind)} yet; see eir status"
            time.sleep(TAKEN_OVER_EACH_S)
    except control.ControlDenied as e:
        return f"it is unknown whether a node has applied it: {e}"
    except control.ControlError as e:
        return f"{e}; nodes that start later or follow the same store apply it by themselves"

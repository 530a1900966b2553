"""Requests for the lists in force: to the running node, or to the store if no node runs.

A difference between node, configuration file and store is reported. A node follows its store within 1 s, so a
difference is checked again before the report. Reasons, authors and times are not in a node's memory. They are read from
the store, or from the node's last good copy, depending on which has the lists of the node.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from eir.cli.access import acting_in
from eir.cli.output import print_message
from eir.config import Config, Whereabouts, digests
from eir.errors import EirError, StoreError
from eir.lists.record.store import ListState, ListStore
from eir.lists.stores.open import open_copy, open_store
from eir.lists.stores.records import decode_state
from eir.node.observe import control

NODE_S = 5.0
"""Seconds within which the node must answer."""
STORE_S = 5.0
"""Seconds within which the store must answer if the node has answered."""
LEVEL_S, LEVEL_EACH_S = 1.5, 0.1
"""Seconds for a node to follow its store before a difference is reported, and interval of the checks."""
TAKEN_OVER_S, TAKEN_OVER_EACH_S = 2.0, 0.05
"""Seconds that a load or a rollback waits for the node on its host to follow, and interval of the checks."""

FromStore = Annotated[bool, typer.Option("--store", help="Ask the store, and not the running node.")]

STORE_ITSELF, LAST_COPY = "the store", "the node's last good copy"

Stored = Mapping[str, ListState | StoreError | None]
"""State of each list in a store, its read error, or None."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """Lists of a running node, and its answer to a command."""

    pid: int
    states: Mapping[str, ListState]
    """States of the lists by which it answers."""
    answer: Any
    """Its answer to the command; None for a command that only asks for the lists."""
    notes: tuple[str, ...]
    """Differences between file, store and node, in words."""


def asked(
    config: Config | Whereabouts, command: str, *, store_only: bool, as_json: bool, **arguments: Any
) -> NodeAnswer | None:
    """Request the lists in force from the node on the state folder; None if the store must answer instead.

    Prints the source of the answer (not with `as_json`) and each difference to standard error.
    """
    node = None if store_only else _node(config, command, arguments)
    if not as_json:
        why = "as --store says" if store_only else "no node answers here"
        print_message(f"from the store, {why}" if node is None else f"from the running node (process {node.pid})")
    for note in () if node is None else node.notes:
        print_message(f"note: {note}")
    return node


def _node(config: Config | Whereabouts, command: str, arguments: Mapping[str, Any]) -> NodeAnswer | None:
    end = time.monotonic() + LEVEL_S
    while True:
        try:
            said = control.ask(config.state, command, timeout_s=NODE_S, **arguments)
        except control.ControlAway:
            return None
        except control.ControlError as e:
            print_message(f"note: the running node could not be queried: {e}")
            return None
        states = {name: decode_state(state) for name, state in said["lists"].items()}
        stored = _stored(config, states)
        if (
            time.monotonic() > end
            or isinstance(stored, EirError)
            or (said["in_step"] and not any(_behind(states, stored)))
        ):
            break
        time.sleep(LEVEL_EACH_S)
    notes = [*_of_file(config, said["configuration"])]
    if not said["in_step"]:
        notes.append("the workers of the node have different lists; this is the answer of the first worker")
    notes += (
        [f"the node answers from memory, because its store does not answer: {stored}"]
        if isinstance(stored, EirError)
        else _behind(states, stored)
    )
    return NodeAnswer(said["pid"], states, said.get("answer"), tuple(notes))


def _stored(config: Config | Whereabouts, states: Mapping[str, ListState]) -> Stored | EirError:
    """Return the states in the store of all lists that the file or the node has, or the store's error."""

    async def lookup() -> Stored:
        store = open_store(config.store, config.state, check=False, upgrades=False)
        try:
            async with asyncio.timeout(STORE_S):
                return await states_of(store, dict.fromkeys([*config.lists, *states]))
        finally:
            await store.close()

    try:
        with acting_in(config.state):
            return asyncio.run(lookup())
    except EirError as e:
        return e
    except TimeoutError:
        return EirError(f"no answer in {STORE_S:g} s")


async def states_of(store: ListStore, names: Mapping[str, object]) -> dict[str, ListState | StoreError | None]:
    """Return the state of each list in the store, or the error of a damaged list.

    Raises StoreError if no list is readable.

    Raises StoreError if no list is readable.
    """
    read: dict[str, ListState | StoreError | None] = {}
    for name in names:
        try:
            read[name] = await store.state(name)
        except StoreError as error:
            if error.cause != "corrupt":
                raise
            read[name] = error
    damaged = [state for state in read.values() if isinstance(state, StoreError)]
    if damaged and len(damaged) == len(read):  # then it is the store
        raise damaged[0]
    return read


def _of_file(config: Config | Whereabouts, node: Mapping[str, str]) -> list[str]:
    """Return messages about settings that differ between the configuration file and the node."""
    if isinstance(config, Whereabouts) and config.problems:
        return [f"{config.path} has errors (eir config); the node uses its previous configuration"]
    file = digests(config.shown)
    differ = [name for name in dict.fromkeys([*file, *node]) if file.get(name) != node.get(name)]
    return (
        [f"{config.path} differs from the node in {', '.join(differ)}; eir reload applies the file"] if differ else []
    )


def _behind(states: Mapping[str, ListState], stored: Stored) -> list[str]:
    """Return messages about lists that differ between the store and the node."""
    notes = []
    for name, there in stored.items():
        here = states.get(name)
        if isinstance(there, StoreError):
            notes.append(f"list {name} is damaged in the store ({there}); the node answers by {_called(here)}")
        elif (there and (there.generation, there.content_digest)) != (here and (here.generation, here.content_digest)):
            notes.append(f"the store has {_called(there)} of {name}, the node answers by {_called(here)}")
    return notes


def _called(state: ListState | None) -> str:
    if state is None:
        return "no release"
    return f"serial {state.serial} (generation {state.generation})" if state.serial else f"change {state.generation}"


def read_as_held(
    config: Config | Whereabouts, name: str, held: ListState, work: Callable[[ListStore], Awaitable[T]]
) -> tuple[T, str] | None:
    """Run `work` on the store or the node's last good copy: the first that has the node's version of the list.

    Returns the result and the name of the place; None if neither has that version.
    """

    async def read() -> tuple[T, str] | None:
        copy = open_copy(config.store, config.state, upgrades=False)
        places = [
            (STORE_ITSELF, open_store(config.store, config.state, check=False, upgrades=False)),
            *([(LAST_COPY, copy)] if copy else []),
        ]
        found = None
        for place, store in places:
            try:
                async with asyncio.timeout(STORE_S):
                    state = await store.state(name) if found is None else None
                    if state is not None and (state.generation, state.content_digest) == (
                        held.generation,
                        held.content_digest,
                    ):
                        found = await work(store), place
            except (StoreError, TimeoutError):
                continue
            finally:
                await store.close()
        return found

    with acting_in(config.state):
        return asyncio.run(read())


def taken_over(state: Path, loaded: Mapping[str, str]) -> str:
    """Wait briefly until the node on this host uses the loaded lists; return a message about the result.

    `loaded`: content digest of each list.
    """
    end = time.monotonic() + TAKEN_OVER_S
    try:
        while True:
            report = control.ask(state, "status")
            behind = [name for name, digest in loaded.items() if report["lists"].get(name, {}).get("digest") != digest]
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

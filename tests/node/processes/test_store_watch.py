"""Warnings of the watcher that polls the store, without a node."""

from types import SimpleNamespace

from eir.config import load_config
from eir.node.observe.status_texts import StatusText
from eir.node.processes.store_watch import StoreWatch


def test_a_history_that_differs_is_the_first_warning(site):
    site.configure()
    config = load_config(site.path)
    config.state.mkdir(exist_ok=True)
    watch = StoreWatch(lambda: config, report=print)
    watch.history = SimpleNamespace(unrecorded=["a", "b"], differs="the store's records do not continue this node's")
    unrecorded = [StatusText.LIST_UNRECORDED.format(name, name) for name in "ab"]
    assert watch.warnings() == [StatusText.HISTORY_DIFFERS.text, *unrecorded]

"""Alerts of the texts of `eir status`."""

import re

from eir.node.observe.conditions import CONDITIONS


def pattern(text):
    """Return a regular expression for all forms of a condition's text: with subjects, and with a detail."""
    return re.compile(".*".join(map(re.escape, re.split(r"\{(?:each)?\}", text))) + "(: .*)?", re.DOTALL)


PATTERNS = [(pattern(condition.text), condition.alert) for condition in CONDITIONS]


def alert_of(text):
    """Return the alert to which a text of `eir status` belongs; an empty text for a condition without an alert, None for other texts."""
    return next((alert for each, alert in PATTERNS if each.fullmatch(text)), None)


def alerts_of(document):
    """Return the alerts that a document of `eir status` names."""
    return {alert_of(text) for text in document["troubles"]}

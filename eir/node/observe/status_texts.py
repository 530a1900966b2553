"""Texts of `eir status` about conditions of the node. Each text belongs to an alert, whose entry in the runbook explains the condition.

The texts of alert rules (alerts.py) and of interfaces (eir.interfaces.interface) are further texts of the status.
"""

from enum import Enum


class StatusText(Enum):
    """Conditions in `eir status`. Each member has the name of an alert, and a text in which `{}` stands for a value."""

    LIST_MISSING = "EirListMissing", "list {} has never been loaded"
    NO_WORKER = "EirDown", "no worker answers"
    WORKERS_MISSING = "EirWorkerRestarted", "{} of {} workers answer"
    STORE_AWAY = "EirStoreAway", "the store is away; the node answers from memory"
    LIST_OLDER = "EirStoreLostData", "the store lost list {} (it shows {}); the node answers from memory"
    LIST_LOST = "EirStoreLostData", "the store lost list {}, which was in force here before: restore a backup"
    SERIAL_LOST = (
        "EirStoreLostData",
        "the store lost releases of list {}: its highest serial is {}, but this node accepted {}; load the newest release again",
    )
    COPY_IN_FORCE = "EirCopyFailed", "list {} comes from this node's last good copy"
    COPY_FAILED = "EirCopyFailed", "the last good copy of list {} cannot be written or read ({})"
    FIRST_SEEN_REFUSED = (
        "EirFirstSightingsRefused",
        "{} devices have a row in the store's record of first sightings that breaks a bound and is left out (event=first_seen_refused)",
    )
    LIST_EXPIRED = "EirListExpired", "list {} is past its expiry"
    FILE_INVALID = (
        "EirReloadFailed",
        "the configuration file has an error; the previous configuration is in force: {}",
    )
    HISTORY_DIFFERS = (
        "EirHistoryDiffers",
        "in the last day the store replaced changes that this node held, or the node's journal was damaged (eir history --verify)",
    )
    CHANGES_LOST = (
        "EirChangesLost",
        "the store lost changes of list {}, which are in {}: apply them, then delete the file",
    )
    LIST_UNRECORDED = "EirListUnrecorded", "the history has no record of the present state of list {} (eir history {})"
    JOURNAL_FAILED = "EirListUnrecorded", "the history cannot be written ({})"
    OVERRIDE_ACTIVE = "EirOverrideActive", "the policy's override gives every check the same answer"
    SHEDDING = "EirShedding", "requests of {} above a rate limit are rejected"
    PEER_REFUSED = "EirPeersRefused", "{} was refused, or refused the node: {}"
    SOURCE_UNREACHED = "EirSourceUnreached", "the source of list {} is not reached (eir pull {})"
    LIST_BEHIND = "EirListBehind", "list {} has been behind its source since {} (eir pull {})"
    INBOX_UNUSABLE = "EirInboxUnusable", "the drop folder {} cannot be used (eir inbox)"
    CERTIFICATE_EXPIRES = "EirCertificateExpires", "the node's certificate expires at {}"
    PATHS_LOST = "EirPathLost", "{} is not reached at {} (SCTP)"
    NO_PEERS = "EirNoPeers", "0 of {} peers connected"
    PEERS_LOST = "EirPeerLost", "peers without a connection: {}"
    INTERFACE_FAULTY = "EirInterfaceFaulty", "{}: {} cannot be used ({})"

    def __init__(self, alert: str, text: str) -> None:
        self.alert = alert
        self.text = text

    def format(self, *values: object) -> str:
        """Return the text, with each `{}` replaced by the next of the values."""
        return self.text.format(*values)

"""S13 as the Diameter node is handed it: id, vendor, command, AVPs, and what answers (3GPP TS 29.272 7.1, 7.2)."""

from dataclasses import replace

from eir.diameter.application import Application, Command, LaneFactory
from eir.s13 import dictionary as s13
from eir.s13.grammar import ECR
from eir.s13.service import S13Service

S13 = Application(
    id=s13.S13_APPLICATION, vendor=s13.VENDOR_3GPP, dictionary=s13.DICTIONARY,
    commands={s13.ME_IDENTITY_CHECK: Command(s13.ME_IDENTITY_CHECK_NAME, ECR, session=True, error_avps=s13.NO_STATE)},
)  # fmt: skip
"""For a client, which answers nothing."""


def s13_application(service: S13Service, lane: LaneFactory | None = None) -> Application:
    """S13 for a node: `service` answers each ECR that no lane made by `lane` takes."""
    return replace(S13, answer=service.answer, lane=lane)

"""S13 as an application of the Diameter node: id, vendor, command, AVPs and answering function (TS 29.272 7.1, 7.2)."""

from collections.abc import Callable
from dataclasses import replace

from eir.checks.trace import Tracer
from eir.interfaces.s13 import dictionary as s13
from eir.interfaces.s13.grammar import ECR
from eir.interfaces.s13.service import S13Service, question_of
from eir.wire.diameter.application import Application, Command, LaneFactory
from eir.wire.diameter.message import Answer, Request, result_label

S13 = Application(
    id=s13.S13_APPLICATION, vendor=s13.VENDOR_3GPP, dictionary=s13.DICTIONARY,
    commands={s13.ME_IDENTITY_CHECK: Command(s13.ME_IDENTITY_CHECK_NAME, ECR, session=True, error_avps=s13.NO_STATE)},
)  # fmt: skip
"""S13 for a client, without an answering function."""


def s13_application(service: S13Service, lane: LaneFactory | None = None, tracer: Tracer | None = None) -> Application:
    """Return the application S13 for a node.

    `service` answers, and `tracer` traces, each ECR that the lanes of `lane` leave to the general path.
    """
    return replace(S13, answer=service.answer, lane=lane, observer=None if tracer is None else _observer_of(tracer))


def _observer_of(tracer: Tracer) -> Callable[[Request, bytes], None]:
    def observe(request: Request, answer: bytes) -> None:
        if (
            tracer.filter is not None
            and request.command == s13.ME_IDENTITY_CHECK
            and tracer.filter.matches(question := question_of(request))
        ):
            tracer.wire(question, request.buffer, answer, _result(answer))

    return observe


def _result(answer: bytes) -> str:
    """Return the result of an ECA as its label in metrics: `2001`, or `10415:5422`."""
    read = Answer(answer, len(answer))
    return result_label(next(iter(read.result_codes), 0), next(iter(read.experimental_results), None))

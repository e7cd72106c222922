"""Which requests are refused before anything else is done with them, and the record of answers made here."""

from __future__ import annotations

from llamad.front.access import is_admin_only
from llamad.front.answers import Answer, answer_locally, error, is_public
from llamad.front.head import RequestHead
from llamad.front.settings import FrontObserver, Outcome, RequestRecord
from llamad.front.shared import Shared


def refusal(
    shared: Shared, head: RequestHead, path: bytes | None, request_id: bytes, *, from_network: bool
) -> Answer | None:
    """The refusal of a request that must be neither relayed nor answered, or None. `path` is its local path."""
    settings = shared.settings
    if from_network and settings.check_host:
        why = shared.hosts.problem(head)
        if why is not None:
            return error(403, "host_not_allowed", why, request_id)
    if not is_public(path, head) and not shared.lets_in(head, path):
        return error(401, "invalid_api_key", "a valid API key is needed", request_id)
    if head.length > settings.body_bytes:
        message = f"the body is longer than {settings.body_bytes} bytes ([limits] body_bytes)"
        return error(413, "body_too_large", message, request_id)
    if path is None and is_admin_only(head):
        return error(403, "admin_only", f"{head.raw_path.decode()} is for the admin only", request_id)
    return None


def answered_here(
    shared: Shared, head: RequestHead, path: bytes | None, request_id: bytes, *, from_network: bool
) -> tuple[Answer, Outcome] | None:
    """The answer to a request that must not be relayed, or need not be; None for one that must. `path`: its local path.
    """
    problem = refusal(shared, head, path, request_id, from_network=from_network)
    if problem is not None:
        return problem, Outcome.REFUSED
    if path is None:
        return None
    if shared.switch is not None:
        return shared.switch.answer(path, head, request_id), Outcome.LOCAL
    is_open, settings = shared.lane.gate.is_open, shared.settings
    answer = answer_locally(
        path, head, request_id, is_open=is_open, settings=settings, describe=shared.describe
    )
    return answer, Outcome.LOCAL


def record_local(
    observer: FrontObserver, head: RequestHead | None, answer: Answer, request_id: bytes, outcome: Outcome
) -> None:
    """Tell the observer of an answer that was made here, in no time. `head` None: it could not be read."""
    observer.request_finished(
        RequestRecord(
            method=head.method.decode() if head else "",
            path=head.raw_path.decode() if head else "",
            status=answer.status,
            outcome=outcome,
            request_id=request_id.decode(),
            duration_s=0.0,
            hold_s=0.0,
            first_byte_s=None,
            request_bytes=0,
            response_bytes=0 if head is not None and head.method == b"HEAD" else len(answer.body or b""),
            deaths=0,
        )
    )

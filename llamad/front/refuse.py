"""Which requests are refused before anything else is done with them, and the record of answers made here."""

from __future__ import annotations

from dataclasses import replace

from llamad.front.access import is_for_admin
from llamad.front.answers import Answer, answer_locally, error, is_public
from llamad.front.head import RequestHead
from llamad.front.settings import FrontObserver, Outcome, RequestRecord
from llamad.front.shared import Shared


def refusal(
    shared: Shared, head: RequestHead, path: bytes | None, request_id: bytes, *, from_network: bool, by_owner: bool
) -> Answer | None:
    """The refusal of a request that must be neither relayed nor answered, or None. `path` is its local path,
    `by_owner`: it comes from root or our own user, through a unix socket."""
    settings = shared.settings
    if from_network and settings.check_host:
        why = shared.hosts.problem(head)
        if why is not None:
            return replace(error(403, "host_not_allowed", why, request_id), is_shared=False)
    is_admin = by_owner or shared.keys.allows_admin(head.credentials)
    if is_for_admin(head) and not is_admin:
        status = 401 if shared.keys.admin else 403
        message = f"{head.raw_path.decode()} is for the admin only: {_HOW if shared.keys.admin else _NO_ADMIN}"
        return error(status, "admin_only", message, request_id)
    if is_admin and is_for_admin(head):
        return None
    if not is_public(path, head) and not is_admin and not shared.lets_in(head, path):
        return error(401, "invalid_api_key", "a valid API key is needed", request_id)
    if head.length > settings.body_bytes:
        message = f"the body is longer than {settings.body_bytes} bytes ([limits] body_bytes)"
        return error(413, "body_too_large", message, request_id)
    return None


_HOW = "a key of admin_keys_file is needed"
_NO_ADMIN = "write admin_keys_file, or ask through a unix socket as root"


def answered_here(
    shared: Shared, head: RequestHead, path: bytes | None, request_id: bytes, *, from_network: bool, by_owner: bool
) -> tuple[Answer, Outcome] | None:
    """The answer to a request that must not be relayed, or need not be; None for one that must. `path`: its local path.
    """
    asked = (head.method, head.path, head.host, head.minor, head.origin, head.credentials, from_network)
    if path is None and asked in shared.let_in and head.length <= shared.settings.body_bytes:
        return None  # nearly always: the same client asks again
    problem = refusal(shared, head, path, request_id, from_network=from_network, by_owner=by_owner)
    if problem is not None:
        return problem, Outcome.REFUSED
    if path is None:
        if not by_owner:
            shared.remember(asked, head)
        return None
    if shared.switch is not None:
        return shared.switch.answer(path, head, request_id), Outcome.LOCAL
    admission, settings = shared.lane.gate.admission, shared.settings
    answer = answer_locally(
        path, head, request_id, admission=admission, settings=settings, describe=shared.describe
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

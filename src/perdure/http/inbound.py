"""The routes for other systems: webhooks, which start a workflow, and callbacks, which resolve one awakeable.

A signature guards them, and nothing else: it does not matter who sends a request, or from where.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection

from msgspec import Struct
from starlette.datastructures import Headers
from starlette.responses import Response

from perdure.authoring.webhook import Webhook
from perdure.core.ids import check_name
from perdure.core.interface import MISSING, Interface
from perdure.core.json_values import from_json
from perdure.core.signature import POSITIONAL
from perdure.core.values import encode_any
from perdure.errors import CapabilityRefused, UnknownInvocation
from perdure.http.api import APPLY_SECONDS, handler_named, is_applied
from perdure.http.exchange import Exchange, json_response
from perdure.http.problems import Problem
from perdure.http.routes import Body, NoQuery, Route
from perdure.http.verifiers import NoEventId, NotVerified
from perdure.http.views import UNTYPED
from perdure.operations.interfaces import Handler
from perdure.operations.port import Operations, Submission

SECRET_HEADERS = ("authorization", "cookie", "signature", "token", "secret", "api-key", "apikey", "password")
"""A header whose name holds one of these is not given to a workflow: what it says would be recorded."""


# --- webhooks ---------------------------------------------------------------------------------------------------------
class Taken(Struct, frozen=True):
    """A webhook that was accepted. `repeated`: it had been before, as this invocation, and nothing was started."""

    invocation_id: str
    repeated: bool


async def hook(exchange: Exchange, _: NoQuery) -> Response:
    service, name = exchange.service, check_name("a handler's name", exchange.parameters["handler"])
    verifier = await service.hooks.verifier(name)
    if verifier is None:
        raise Problem(404, "no-hook", f"{name!r} has no hook here: `perdure hook add` gives it one, or `hooks=`")
    headers = exchange.request.headers
    try:
        event = verifier.verify(headers, exchange.body, time.time())
    except NotVerified as error:
        service.hooks.note_refusal(name, error)
        raise Problem(401, "not-verified", f"this is no webhook for {name!r}: {error}") from error
    except NoEventId as error:
        raise Problem(400, "no-event-id", str(error)) from error
    webhook = Webhook(_headers_for_a_workflow(headers, verifier.headers), exchange.body)
    submission = _submission(await handler_named(exchange, name), event, webhook)
    exchange.target = f"{name}/{submission.id}"
    repeated = await _exists(service.operations, submission.id)
    if not repeated:
        await service.operations.start(submission)
    return json_response(Taken(submission.id, repeated))


def _submission(handler: Handler, event: str, webhook: Webhook) -> Submission:
    """Return what a webhook starts. The id is that of the event, and so is the digest: its repetitions may differ."""
    parameter = takes_webhook(handler.interface)
    if parameter is None:
        text = (
            f"the workflow {handler.name!r} cannot be started by a webhook: it must take one parameter, annotated "
            "perdure.Webhook"
        )
        raise Problem(409, "takes-no-webhook", text)
    input = encode_any({POSITIONAL: [], parameter: webhook})
    source = f"{handler.asked}\n{event}".encode()
    id = hashlib.blake2b(source, digest_size=16, person=b"perdure-hook")
    return Submission(
        id.hexdigest(), handler.asked, input, id.digest()[:8], True, interface=bytes.fromhex(handler.hash)
    )


def takes_webhook(interface: Interface) -> str | None:
    """Return the name of the one parameter of a handler, if it is a `Webhook` of this release or of another one."""
    only = interface.only
    if only is None or (only.type.kind, only.type.name) != ("class", Webhook.__name__):
        return None
    fields = {field.name for field in interface.input.node(only.type).fields}
    return only.name if fields >= {*Webhook.__struct_fields__} else None


def _headers_for_a_workflow(headers: Headers, signatures: Collection[str]) -> dict[str, str]:
    """Return headers by name, without those that hold secrets. Several of one name become one (RFC 9110, 5.3)."""
    found: dict[str, str] = {}
    for name, text in headers.items():
        if name not in signatures and not any(each in name for each in SECRET_HEADERS):
            found[name] = f"{found[name]}, {text}" if name in found else text
    return found


async def _exists(operations: Operations, id: str) -> bool:
    try:
        await operations.look(id)
    except UnknownInvocation:
        return False
    return True


# --- callbacks --------------------------------------------------------------------------------------------------------
class Resolved(Struct, frozen=True):
    """An answer that was accepted. `applied`: the workflow has it; otherwise it gets it when a worker is there."""

    applied: bool


async def callback(exchange: Exchange, _: NoQuery) -> Response:
    operations = exchange.service.operations
    try:
        awakeable = (await operations.check_capability("hook", exchange.parameters["capability"])).awakeable_id
    except CapabilityRefused as error:
        raise Problem(410 if error.expired else 404, "bad-link", str(error)) from error
    exchange.target = awakeable
    id, _n = await operations.awakeable(awakeable)
    described = await operations.describe(id)
    schema = next((each.schema for each in described.awakeables if each.id == awakeable), None)
    given = exchange.json()
    value = from_json(schema or UNTYPED, None if given is MISSING else given, what="the body")
    applied = await is_applied(operations.resolve(awakeable, value, timeout=APPLY_SECONDS))
    return json_response(Resolved(applied), 200 if applied else 202)


ROUTES = (
    Route(
        *("POST", "/api/hooks/{handler}", "anybody", hook),
        "Start a workflow with a webhook, which its verifier guards. The answer comes after the start is durable, and "
        "is the same for an event that comes again, which starts nothing.",
        body=Body.AS_SENT,
        gives=Taken,
        also=(401, 404, 409),
        is_signed=True,
        audited=True,
    ),
    Route(
        *("POST", "/api/awakeable-hooks/{capability}", "anybody", callback),
        "Resolve an awakeable with the body, JSON of any content type, by a link that was made for it.",
        body=Body.AS_SENT,
        gives=Resolved,
        gives_too=((202, Resolved),),
        also=(404, 409, 410, 422),
        is_signed=True,
        audited=True,
    ),
)

"""One request: what it brings, and what its endpoint answers with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from perdure.core.interface import MISSING
from perdure.core.json_values import DEPTH_LIMIT, is_deeper
from perdure.http.gate import Admitted
from perdure.http.permitted import Permitted
from perdure.http.problems import Problem

if TYPE_CHECKING:
    from perdure.http.service import Service

S = TypeVar("S", bound=Struct)

DEPTH_TEXT = f"the body is nested more than {DEPTH_LIMIT} levels deep"


class Exchange:
    """A request: who makes it, its parameters from the path, its body as received, and the service that it is for.

    `operations` are those that the caller may use. `target` is what the request is about, for the audit.
    """

    def __init__(
        self, request: Request, admitted: Admitted, parameters: Mapping[str, str], body: bytes, service: Service
    ) -> None:
        self.request = request
        self.admitted = admitted
        self.access = admitted.access
        self.parameters = parameters
        self.body = body
        self.service = service
        until = None if admitted.token is None else admitted.token.expires
        self.operations = Permitted(service.operations, admitted.access, until)
        self.target = "/".join(parameters.values())

    @property
    def root(self) -> str:
        """The path under which the application is mounted."""
        return quote(self.request.scope.get("root_path", ""))

    @property
    def public_root(self) -> str:
        """What URLs that are given away begin with: the public URL, if it is known, else the path of the mount."""
        return self.service.public_url or self.root

    def header(self, name: str) -> str | None:
        return self.request.headers.get(name)

    def json(self) -> Any:
        """Return the body as builtin types; `MISSING` if there is none."""
        if not self.body.strip():
            return MISSING
        return self._decoded(Any)

    def struct(self, type: type[S]) -> S:
        """Return the body by a type; an empty one is an empty object."""
        if not self.body.strip():
            self.body = b"{}"
        return self._decoded(type)

    def _decoded(self, type: Any) -> Any:
        try:
            found = msgspec.json.decode(self.body)
            if is_deeper(found, DEPTH_LIMIT):
                raise RecursionError
            return found if type is Any else msgspec.convert(found, type)
        except RecursionError:
            raise Problem(400, "bad-json", DEPTH_TEXT, wrong=[("", DEPTH_TEXT)]) from None
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at `$")
            pointer = "".join(f"/{part}" for part in re.findall(r"[^.\[\]`]+", path))
            raise Problem(422, "value-refused", f"the body: {error}", wrong=[(pointer, text)]) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Problem(400, "bad-json", f"the body is not JSON: {error}") from None


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer as JSON. No cache keeps it."""
    found = {"Cache-Control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(content), status, found, "application/json")

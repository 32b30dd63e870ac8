"""The HTTP server of a run: JSON over Starlette and uvicorn, both pure Python; what is refused is refused in JSON."""

import asyncio
import hmac
import json
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from jaxlm.errors import UserError, one_line
from jaxlm.json_files import json_safe
from jaxlm.serving.answers import Answers
from jaxlm.serving.fields import Limits, RequestError, read_body

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class App:
    """The routes of a server and the requests in progress."""

    def __init__(self, answers: Answers, limits: Limits, token: str | None):
        self.answers, self.limits, self._token, self.active = answers, limits, token, 0
        self._page = HTMLResponse(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Respond to a request, by the interface of ASGI."""
        response = await self._respond(Request(scope, receive))
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        """An error of the client or of the server is a JSON body too."""
        try:
            return await self._route(request)
        except UserError as error:
            return _refusal(getattr(error, "status", 400), str(error))
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            print(f"jaxlm: {request.url.path}: {one_line(error)}", file=sys.stderr, flush=True)
            return _refusal(500, "the server failed; its log has the reason")

    async def _route(self, request: Request) -> Response:
        path = request.url.path
        if self._token is None and request.url.hostname not in LOOPBACK:
            raise RequestError(421, f"the host {request.url.hostname!r:.60} is not this server: use localhost")
        endpoints = self.answers.endpoints
        if path not in ("/", "/health", "/v1/models", *endpoints):
            raise RequestError(404, f"no path {path!r:.60}; this run has {', '.join(endpoints)}, /v1/models, /health")
        methods = ("POST",) if path in endpoints else ("GET", "HEAD")
        if request.method not in methods:
            raise RequestError(405, f"{request.method} {path}: expected {methods[0]}")
        if path == "/":
            return self._page
        if path == "/health":
            return JSONResponse({"status": "ok", "requests": self.active})
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
        if self._token is not None and not hmac.compare_digest(given, self._token.encode()):
            raise RequestError(401, "missing or wrong token: send the header Authorization: Bearer TOKEN")
        if path == "/v1/models":
            return JSONResponse({"object": "list", "data": [self.answers.model]})
        with self._place():
            return await self._answer(request, path)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self.active >= self.limits.max_requests:
            raise RequestError(503, f"{self.active} requests are in progress, the limit: try again in a second")
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    async def _answer(self, request: Request, path: str) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError(415, "expected the header Content-Type: application/json")
        timeout = self.limits.timeout
        try:
            body = read_body(await asyncio.wait_for(self._read(request), timeout), path)
        except TimeoutError:
            raise RequestError(408, f"the body did not arrive within {timeout:g} s") from None
        work = asyncio.ensure_future(self.answers.endpoints[path](body))
        gone = asyncio.ensure_future(request.receive())  # after the body comes only the end of the connection
        try:
            done, _ = await asyncio.wait({work, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            gone.cancel()
        if work in done:
            answer = work.result()
            if isinstance(answer, dict):
                return Response(_dump(answer), media_type="application/json")
            return StreamingResponse(self._events(answer), media_type="text/event-stream")
        if gone in done:
            raise ClientDisconnect
        raise self._late()

    def _late(self) -> RequestError:
        return RequestError(504, f"not complete within {self.limits.timeout:g} s: send less text, or try again later")

    async def _read(self, request: Request) -> bytes:
        body, limit = b"", self.limits.max_body_bytes
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise RequestError(413, f"a body of more than {limit:,} bytes, the limit: send less text at a time")
        return body

    async def _events(self, answer: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[bytes]:
        """Server-sent events: each piece, an error if one ends the stream, then [DONE]."""
        try:
            with self._place():
                async with asyncio.timeout(self.limits.timeout):
                    async for piece in answer:
                        yield b"data: " + _dump(piece) + b"\n\n"
        except Exception as error:
            if isinstance(error, TimeoutError):
                error = self._late()
            yield b"data: " + bytes(_refusal(getattr(error, "status", 500), one_line(error)).body) + b"\n\n"
        finally:
            await answer.aclose()
        yield b"data: [DONE]\n\n"


def _refusal(status: int, message: str) -> JSONResponse:
    error = {"message": message, "type": "server_error" if status >= 500 else "invalid_request_error", "code": status}
    return JSONResponse({"error": error}, status, {"Retry-After": "1"} if status == 503 else None)


def _dump(value: Any) -> bytes:
    return json.dumps(json_safe(value), ensure_ascii=False, allow_nan=False).encode(errors="replace")


def serve(app: App, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C; those in progress have five seconds to be completed."""
    options: Any = {"lifespan": "off", "ws": "none", "log_level": "error", "access_log": False, "server_header": False}
    options |= {"timeout_graceful_shutdown": 5, "limit_concurrency": 4 * app.limits.max_requests}
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal again after it has stopped
    uvicorn.Server(uvicorn.Config(app, **options)).run(sockets=[listener])
    app.answers.close()

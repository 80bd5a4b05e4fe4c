"""A Hugging Face Hub on loopback, for tests with the real client.

    python tests/hub_server.py --root DIR [--port 0]      prints {"endpoint": ..., "tokens": ...}

The server speaks the part of the Hub's HTTP protocol that uploads, downloads and access checks need. It uses the
standard library only and runs in a process of its own, so that a client under test can be killed, cut off or refused
without touching the state it talks to. Large files are served, as on the real Hub, by another host, here a second
port under another name, which refuses requests that carry a token. Requests under ``/_control/`` arm faults and read
the state; `hub_fixtures.HubServer` sends them.
"""

import argparse
import functools
import hashlib
import hmac
import json
import os
import secrets
import socket
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from hub_api import ROUTES, Call
from hub_store import HubError, Reply, Store


USER_TOKEN, OTHER_TOKEN, BAD_TOKEN = "hf_loopback_user_write", "hf_loopback_other_read", "hf_loopback_nobody"
TOKENS = {USER_TOKEN: ("user", "write"), OTHER_TOKEN: ("other", "read")}
FAULT_KINDS = ("drop", "drop_reply", "truncate", "hang")


class Faults:
    """Faults waiting to strike, and the requests that hang until they are released."""

    def __init__(self):
        self.armed, self.hung, self.epoch, self.changed = [], [], 0, threading.Condition()

    def take(self, stage, path):
        with self.changed:
            for fault in self.armed:
                if fault["stage"] == stage and fault["match"] in urllib.parse.unquote(path):
                    fault["times"] -= 1
                    self.armed = [fault for fault in self.armed if fault["times"] > 0]
                    return fault["kind"]
        return None

    def hang(self, stage):
        with self.changed:
            self.hung.append(stage)
            self.changed.notify_all()
            epoch = self.epoch
            self.changed.wait_for(lambda: self.epoch != epoch)

    def wait(self, stage, timeout):
        with self.changed:
            return self.changed.wait_for(lambda: stage in self.hung, timeout)

    def clear(self):
        with self.changed:
            self.armed, self.hung, self.epoch = [], [], self.epoch + 1
            self.changed.notify_all()


def control(hub, action, query):
    """Answer a ``/_control/`` request of the test: arm and clear faults, wait for a hang, read the state."""
    if action == "fault":
        fault = {**query, "times": int(query["times"])}
        fault["kind"] = int(fault["kind"]) if fault["kind"].isdigit() else fault["kind"]
        stages = sorted({stage for stage, *_ in ROUTES})
        if fault["stage"] not in stages or not (isinstance(fault["kind"], int) or fault["kind"] in FAULT_KINDS):
            raise HubError(400, f"no such fault: {fault}; stages {stages}, kinds {FAULT_KINDS} or a status")
        hub.faults.armed.append(fault)
        return Reply({})
    if action == "pending":
        return Reply(hub.faults.armed)
    if action == "clear":
        hub.faults.clear()
        return Reply({})
    if action == "wait":
        return Reply(hub.faults.wait(query["stage"], float(query["timeout"])))
    if action == "log":
        return Reply([entry for entry in hub.log if query["match"] in entry["path"]])
    if action == "repos":
        with hub.store.lock:
            return Reply(json.dumps(hub.store.repos).encode())
    if action == "object":
        return Reply(hub.store.read(query))
    raise HubError(404, f"no such control: {action}")


class Hub:
    """What the two ports share: the store, the faults, the log and the signatures of the large files' addresses."""

    def __init__(self, root, port=0):
        self.store, self.faults, self.log, self.secret = Store(root), Faults(), [], secrets.token_bytes()
        self.front, self.storage = Port(("127.0.0.1", port), Handler), Port(("127.0.0.1", 0), Handler)
        self.front.hub = self.storage.hub = self
        self.endpoint = f"http://127.0.0.1:{self.front.server_port}"

    def signature(self, method, path):
        return hmac.new(self.secret, f"{method} {path}".encode(), hashlib.sha256).hexdigest()

    def signed(self, method, path):
        """An address on the storage port that needs no token."""
        return f"http://localhost:{self.storage.server_port}{path}?sig={self.signature(method, path)}"

    def serve(self):
        threading.Thread(target=self.storage.serve_forever, daemon=True).start()
        self.front.serve_forever()


class Port(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Say nothing of a client that went away: tests kill clients on purpose."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection: finds the route of each request, lets an armed fault strike, keeps the log."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave together

    def log_message(self, format, *args):
        """Keep quiet: the log that tests read is `Hub.log`."""

    def read_body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionAbortedError("the client went away before the end of its request")
        return body

    def user(self):
        """The (name, role) of the token sent, None without one; an unknown token is refused whatever it asks for."""
        authorization = self.headers.get("Authorization")
        if authorization is None:
            return None
        token = authorization.removeprefix("Bearer ")
        if token not in TOKENS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return TOKENS[token]

    def find_route(self, path, storage):
        """(stage, handler, match): large files are on the storage port only, everything else on the other only."""
        for stage, methods, pattern, function in ROUTES:
            match = pattern.fullmatch(path)
            if match and self.command in methods and path.startswith("/lfs/") == storage:
                return stage, function, match
        return None, None, None

    def handle_request(self):
        hub, (path, _, query) = self.server.hub, self.path.partition("?")
        query = urllib.parse.parse_qs(query, keep_blank_values=True)
        if path.startswith("/_control/"):
            plain = {key: values[0] for key, values in query.items()}
            self.send(self.answer(control, hub, path.removeprefix("/_control/"), plain))
            return
        body, storage = self.read_body(), self.server is hub.storage
        stage, function, match = self.find_route(path, storage)
        entry = {"method": self.command, "path": urllib.parse.unquote(path), "port": "storage" if storage else "hub"}
        entry |= {"stage": stage, "authorized": "Authorization" in self.headers, "status": None, "fault": None}
        hub.log.append(entry)
        if function is None:
            entry["status"] = 404
            self.send(Reply({"error": "no such page"}, 404))
            return
        args = {key: value and urllib.parse.unquote(value) for key, value in match.groupdict().items()}
        self.serve(entry, functools.partial(self.answer, self.route, function, args, query, body))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def serve(self, entry, handle):
        """Send what `handle` answers, unless a fault armed for this stage strikes before, instead or while sending."""
        hub, stage = self.server.hub, entry["stage"]
        # What only reads is answered first: a redirect has no body to cut, its fault waits for the storage port.
        reply = handle() if self.command in ("GET", "HEAD") else None
        redirected = reply and stage == "resolve_get" and reply.status == 302
        kind = entry["fault"] = None if redirected else hub.faults.take(stage, self.path)
        if kind == "hang":
            hub.faults.hang(stage)
        if kind in ("hang", "drop"):
            self.drop()
            return
        if isinstance(kind, int):
            reply = Reply({"error": "a fault armed by the test"}, kind)
        reply = reply or handle()
        entry["status"] = reply.status
        if kind == "drop_reply":
            self.drop()
        else:
            self.send(reply, cut=kind == "truncate")

    def route(self, function, args, query, body):
        hub = self.server.hub
        if self.server is hub.storage:
            path, method = self.path.partition("?")[0], "PUT" if self.command == "PUT" else "GET"
            if "Authorization" in self.headers:
                raise HubError(400, "a token was sent to the storage port")
            if query.get("sig") != [hub.signature(method, urllib.parse.unquote(path))]:
                raise HubError(403, "the address is not signed for this request")
        call = Call(self.command, args, query, body, self.headers, self.user())
        with hub.store.lock:
            return function(hub, call)

    @staticmethod
    def answer(function, *args):
        """The reply of a handler; what it refuses, or fails at, is a reply too."""
        try:
            return function(*args)
        except HubError as error:
            return error.reply
        except Exception as error:
            return Reply({"error": f"{type(error).__name__}: {error}"}, 500, {"X-Error-Message": type(error).__name__})

    def send(self, reply, cut=False):
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.drop()

    def drop(self):
        """Close the connection on a client that still waits."""
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


def main():
    parser = argparse.ArgumentParser(description="Serve a Hugging Face Hub on loopback.")
    parser.add_argument("--root", required=True, help="folder of the repositories; made if it does not exist")
    parser.add_argument("--port", type=int, default=0, help="port of the endpoint (default: a free one)")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the process that holds stdin")
    args = parser.parse_args()
    hub = Hub(args.root, args.port)
    if args.until_stdin_closes:
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print(json.dumps({"endpoint": hub.endpoint, "tokens": list(TOKENS)}), flush=True)
    hub.serve()


if __name__ == "__main__":
    main()

"""Every secret setting, found by its type, with a marked value for it; and a server whose answers quote the request."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from ops.docgen.settings_catalog import settings_classes, unwrap_type, variable_names

MARK = "t0pS3cret"
"""A part of each marked value, near its beginning: a value that was cut is found too."""


@dataclass(frozen=True)
class SecretSetting:
    """`variable`: of the environment. `value`: marked, and valid. `secret`: what must not be seen of it."""

    settings: type[BaseSettings]
    field: str
    variable: str

    @property
    def value(self) -> str:
        if self.variable.endswith("_URL"):
            scheme = "amqp" if "AMQP" in self.variable else "postgresql"
            return f"{scheme}://user:{quote(self.secret, safe='')}@127.0.0.1:1/"
        return {"WEBHOOK_SECRET": f"whsec_{self.secret}", "GATEWAY_API_KEYS": f"tenant:{self.secret}"}.get(self.variable, self.secret)

    @property
    def secret(self) -> str:
        """44 characters that are base64."""
        return f"{MARK}+{self.variable.replace('_', '')}/".ljust(44, "0")[:44]


def secret_settings() -> list[SecretSetting]:
    """One for each variable, also for those that several classes read."""
    return [
        SecretSetting(cls, name, variable)
        for cls in settings_classes()
        for name, field in cls.model_fields.items()
        if unwrap_type(field.annotation)[0] is SecretStr
        for variable in variable_names(str(cls.model_config.get("env_prefix") or ""), name, field)
    ]


def marked_environment() -> dict[str, str]:
    """A marked value for every secret setting."""
    return {setting.variable: setting.value for setting in secret_settings()}


@contextmanager
def quoting_server(status: int = 403) -> Iterator[str]:
    """Refuses every request and quotes its headers, as some servers do: its URL."""

    class QuotingHandler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            quoted = "".join(f"{name}: {value}\n" for name, value in self.headers.items())
            body = f"refused: {self.headers.get('Authorization')} is not known\n{self.path}\n{quoted}".encode()
            self.send_response(status, "Refused")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"):
        setattr(QuotingHandler, f"do_{method}", QuotingHandler.answer)
    with ThreadingHTTPServer(("127.0.0.1", 0), QuotingHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()

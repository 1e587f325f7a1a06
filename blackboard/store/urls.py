"""Database URLs: one spelling for both drivers, and one that is safe to print."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, urlencode

from ..errors import ConfigurationError

__all__ = ["asyncpg_url", "has_option", "normalise_url", "redact"]

_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg")
_EXAMPLE = "postgresql://user@host:5432/database or postgresql://user@/database?host=/socket/directory"
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<netloc>[^/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?")
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^:\[\]]*)(?::(?P<port>\d*))?")

# libpq options that steer the client only. asyncpg would send what it does not know to the server as a setting, which
# refuses it. channel_binding is among them because hosted services put it into the URLs they hand out.
_LIBPQ_ONLY = frozenset(
    {
        "channel_binding", "client_encoding", "connect_timeout", "fallback_application_name", "gssdelegation",
        "gssencmode", "hostaddr", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval",
        "load_balance_hosts", "requirepeer", "require_auth", "sslcertmode", "sslcompression", "sslcrldir", "sslsni",
        "tcp_user_timeout",
    }
)  # fmt: skip


def normalise_url(url: str) -> str:
    """``url`` as a ``postgresql://`` URL that asyncpg and libpq read alike.

    Accepts ``postgresql://``, ``postgres://`` and SQLAlchemy's ``postgresql+asyncpg://`` and
    ``postgresql+psycopg://``; the host may be a socket directory in the query (``?host=/dir&port=5432``).

    Raises:
        ConfigurationError: it is no such URL; the message never holds the password.
    """
    if not url or not url.isprintable() or " " in url:
        raise ConfigurationError(f"The database URL is empty or holds blanks; write {_EXAMPLE}.")
    match = _URL.fullmatch(url)
    if match is None:
        raise ConfigurationError(
            f"{redact(url)!r} is no database URL; write {_EXAMPLE} and percent-encode special characters in passwords."
        )
    scheme = match["scheme"].lower()
    if scheme not in _SCHEMES:
        raise ConfigurationError(f"A blackboard lives in PostgreSQL, not at {scheme}://; write {_EXAMPLE}.")
    user, at, hosts = match["netloc"].rpartition("@")
    for host in hosts.split(","):
        parsed = _HOST.fullmatch(host)
        if parsed is None or (parsed["port"] and not 0 < int(parsed["port"]) < 65536):
            raise ConfigurationError(f"{redact(url)!r} has a bad host or port; write {_EXAMPLE}.")
    query = match["query"] or ""
    if any("=" not in pair for pair in query.split("&") if pair):
        raise ConfigurationError(f"{redact(url)!r} has an option without a value after the question mark.")
    options = parse_qsl(query, keep_blank_values=True)
    if any(name == "port" and not value.replace(",", "").isdigit() for name, value in options):
        raise ConfigurationError(f"{redact(url)!r} has a port that is no number.")
    if not match["path"] and not any(name in {"dbname", "database"} for name, _ in options) and not (hosts or options):
        raise ConfigurationError(f"{redact(url)!r} names no server; write {_EXAMPLE}.")
    tail = f"?{urlencode(options, quote_via=quote, safe='/,')}" if options else ""
    return f"postgresql://{user}{at}{hosts}{match['path'] or ''}{tail}"


def asyncpg_url(url: str) -> str:
    """A normalised URL without the options that only libpq understands."""
    head, _, query = url.partition("?")
    options = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name not in _LIBPQ_ONLY]
    return f"{head}?{urlencode(options, quote_via=quote, safe='/,')}" if options else head


def has_option(url: str, name: str) -> bool:
    """Whether the query of a normalised URL sets ``name``."""
    return any(key == name for key, _ in parse_qsl(url.partition("?")[2], keep_blank_values=True))


def redact(url: str) -> str:
    """``url`` with every password as ``***``; works on broken URLs too."""
    # Greedy up to the last @: a password with an unescaped @ must not show its tail.
    url = re.sub(r"(://[^:@/?#]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    return re.sub(r"(?i)((?:ssl)?password=)[^&\s]*", r"\1***", url)

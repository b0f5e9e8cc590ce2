"""DATABASE_URL and DATABASE_DIRECT_URL as people write them: the forms of other programs, options, files of certificates.

The reports are public ones, in our words; the server is real.
"""

import asyncio
import os
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from pydantic import SecretStr

from bus.errors import PermanentError
from bus.persistence.database_url import check_certificate_files, check_database_url, session_parameters, without_connect_timeout
from bus.persistence.server_check import examine_server
from ops.cli import main
from ops.errors import SetupError
from ops.local.postgres import EmbeddedPostgres
from ops.local.stack import local_stack
from ops.settings import LocalSettings
from tests.support.certificates import make_certificates
from tests.support.own_database import own_database
from tests.support.pgbouncer import open_pgbouncer


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        pytest.param("postgresql+asyncpg://u:geheim@h/d", "names a driver for SQLAlchemy", id="PrefectHQ/prefect #14602"),
        pytest.param("postgres+psycopg2://u:geheim@h/d", "names a driver for SQLAlchemy", id="morphik-org/morphik-core #122"),
        pytest.param("jdbc:postgresql://h:5432/d?user=u&password=geheim", "form of Java", id="pgbouncer/pgbouncer #89"),
        pytest.param("mysql://u:geheim@h/d", "its scheme is `mysql`", id="another database"),
        pytest.param("sqlite:///geheim.db", "its scheme is `sqlite`", id="a file"),
        pytest.param("host=h user=u password=geheim", "words such as host=", id="spacecloud-io/space-cloud #537"),
        pytest.param('"postgresql://u:geheim@h/d"', "quotation mark", id="quotation marks from --env-file"),
        pytest.param("postgresql://u:ge#heim@h/d", "`#` as %23", id="supabase/cli #155"),
        pytest.param("postgresql://u:ge@heim@h/d", "`@` as %40", id="ankane/pgsync #236"),
        pytest.param("postgresql://u:ge/heim@h:5432/d", "`/` as %2F", id="PostgREST/postgrest #1531"),
        pytest.param("postgresql://u:12/geheim@h:5432/d", "`/` as %2F", id="brianc/node-postgres #3013"),
        pytest.param("postgresql://u:ge?heim@h:5432/d", "`?` as %3F", id="ariga/atlas #1631"),
        pytest.param("postgresql://u:geheim]S[P@h:5432/d", "`[` as %5B", id="amacneil/dbmate #212"),
        pytest.param("postgresql://u:100%geheim@h/d", "`%` as %25", id="grafana/xk6-sql #21"),
        pytest.param("postgresql://u:geheim@h:5432a/d", "port of a host is no number", id="a port with a letter"),
        pytest.param("postgresql://u:geheim@h/d?schema=public", "`schema` belongs to another driver: remove it", id="prisma/orm #23438"),
        pytest.param("postgresql://u:geheim@h/d?pgbouncer=true", "recognised without it", id="prisma/orm #2520"),
        pytest.param("postgresql://u:geheim@h/d?connection_limit=5", "DATABASE_POOL_SIZE", id="SatyamPandey-07/WorkSphere #893"),
        pytest.param("postgresql://u:geheim@h/d?sslmode=require&channel_binding=require", "no channel binding", id="t8y2/dbx #1210"),
        pytest.param("postgresql://u:geheim@h/d?ssl=true", "write sslmode=require", id="ssl of JDBC"),
        pytest.param("postgresql://u:geheim@h/d?sslmode=required", "sslmode is one of", id="a mode of MySQL"),
        pytest.param("postgresql://u:geheim@h/d?sslmode", "name=value", id="an option without a value"),
        pytest.param("postgresql://u:geheim@h/d?connect_timeout=10s", "a number of seconds", id="a time with a unit"),
    ],
)
def test_wrong_url_is_reported_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, cure: str
) -> None:
    """At once, by both settings, without a broker or a database; no part of the URL is quoted."""
    with pytest.raises(ValueError, match=re.escape(cure)):
        check_database_url(url)
    for name in ("DATABASE_URL", "DATABASE_DIRECT_URL"):
        with monkeypatch.context() as environment:
            environment.setenv("AMQP_URL", "amqp://none")
            environment.setenv(name, url)
            environment.setattr("bus.observability.logs.configure_logging", lambda: None)
            assert main(["run", "webhook"]) == 1
        output = capsys.readouterr().err
        assert f"{name}: " in output
        assert "heim" not in output
        assert "Traceback" not in output


@pytest.mark.parametrize(
    "url",
    [
        "postgres://u@h",
        "postgresql://user%40tenant:p%23%2F@h:5432/d",
        "postgresql://u:p@[::1]:5432/d?application_name=a%40b",
        "postgresql://u:p@one:5432,two:5433,three/d?target_session_attrs=read-write",
        "postgresql:///d?host=/run/postgresql&user=u",
        "postgresql://u:p@h/d?options=-c%20search_path%3Dx%20--work_mem%3D8MB&statement_timeout=5s",
        "postgresql://u:p@h/d?sslmode=verify-full&sslrootcert=system&connect_timeout=10",
        " postgresql://u:p@h/d\n",
    ],
)
def test_sound_url_is_accepted(url: str) -> None:
    """dbmate and libpq: escaped users, IPv6, several hosts, sockets, options of the session, a line feed at the end of a secret's file."""
    assert check_database_url(url) == url.strip()


def test_options_are_read_as_libpq_does() -> None:
    """checkly and neondatabase/neon #6291: parameters inside of `options`; `connect_timeout` and `sslrootcert=system` are libpq's own."""
    url = "postgresql://h/d?options=-c%20search_path%3Dx%20--work_mem%3D8MB&statement_timeout=5s&connect_timeout=7&sslrootcert=system"
    assert session_parameters(url) == ["statement_timeout", "search_path", "work_mem"]
    dsn, seconds = without_connect_timeout(url, 10.0)
    assert (seconds, "connect_timeout" in dsn, "sslrootcert=system" in dsn) == (7.0, False, False)
    assert without_connect_timeout("postgresql://h/d?connect_timeout=0", 10.0) == ("postgresql://h/d", 10.0)


@pytest.mark.parametrize(
    "option",
    [
        *("TimeZone=UTC", "timezone=UTC", "DateStyle=ISO", "IntervalStyle=postgres", "Application_Name=x", "Search_Path=public"),
        *("options=-c%20timezone%3DUTC", "options=-c%20TimeZone%3DUTC%20--statement-timeout%3D5000", "app.tenant=3"),
    ],
)
async def test_option_that_the_server_applies_is_accepted(database_url: str, option: str) -> None:
    """psycopg and JDBC write names of parameters with capital letters, as the documents of PostgreSQL do; case means nothing to it."""
    async with own_database(database_url) as (url, *_):
        assert not (await examine_server("DATABASE_URL", f"{url}?{option}")).shares_sessions


@pytest.mark.parametrize("option", ["role={}", "options=-c%20role%3D{}"])
async def test_role_of_the_session_is_accepted(database_url: str, option: str) -> None:
    """hashicorp/terraform-provider-postgresql: a login of its own that acts as the owner. No view of the server lists this parameter."""
    async with own_database(database_url) as (url, role, _):
        assert not (await examine_server("DATABASE_URL", f"{url}?{option.format(role)}")).shares_sessions


@pytest.mark.parametrize(
    ("option", "cure"),
    [
        ("sslrootcert={empty}", "the file of sslrootcert, .*it must hold certificates in PEM"),
        ("sslrootcert={text}", "the file of sslrootcert, .*it must hold certificates in PEM"),
        ("sslcrl={text}", "the file of sslcrl, .*it must hold certificates in PEM"),
        ("sslcert={text}&sslkey={key}", "the file of sslcert, .*it must hold certificates in PEM"),
        ("sslcert={server}&sslkey={text}", "the file of sslkey, .*it must hold a key in PEM"),
        ("sslcert={authority}&sslkey={key}", "the file of sslkey, .*belongs to sslcert"),
    ],
)
async def test_certificate_file_that_cannot_be_used_is_named(database_url: str, tmp_path: Path, option: str, cure: str) -> None:
    """A mounted secret that is empty, or DER in place of PEM: the driver's error is that of a broken connection, and was waited for."""
    made = make_certificates(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("no certificate")
    names = {"empty": tmp_path / "empty", "text": tmp_path / "text", "key": made.key, "server": made.server, "authority": made.authority}
    with pytest.raises(PermanentError, match=f"^DATABASE_URL: {cure}"):
        await examine_server("DATABASE_URL", f"{database_url}?sslmode=verify-full&{option.format(**names)}")
    check_certificate_files(f"{database_url}?sslrootcert={made.authority}&sslcert={made.server}&sslkey={made.key}")


def test_certificate_file_without_the_right_to_read_is_named(tmp_path: Path) -> None:
    """bitnami/charts: a key with mode 0600 that belongs to another user than that of the container."""
    key = make_certificates(tmp_path).key
    key.chmod(0)
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        with pytest.raises(ValueError, match=r"the file of sslrootcert, .* may not be read"):
            check_certificate_files(f"postgresql://h/d?sslrootcert={key}")
    finally:
        os.seteuid(user)


async def test_local_stack_reports_a_wrong_url(tmp_path: Path) -> None:
    """PrefectHQ/prefect #14602: the command that starts all processes names the setting, before any of them restarts in a circle."""
    settings = LocalSettings(local_folder=tmp_path, database_url=SecretStr("postgresql+asyncpg://u:p@h/d"))
    with pytest.raises(SetupError, match=r"DATABASE_URL: .*SQLAlchemy"):
        async with local_stack(settings):
            pass


async def test_local_stack_reports_a_wrong_direct_url(tmp_path: Path) -> None:
    """PrefectHQ/prefect #14602, the other setting."""
    wrong = SecretStr("jdbc:postgresql://h/d")
    settings = LocalSettings(local_folder=tmp_path, database_url=SecretStr("postgresql://h/d"), database_direct_url=wrong)
    with pytest.raises(SetupError, match=r"DATABASE_DIRECT_URL: .*form of Java"):
        async with local_stack(settings):
            pass


@pytest.mark.parametrize("given", [True, False], ids=["given", "embedded"])
def test_local_processes_inherit_no_direct_url_of_another_database(
    monkeypatch: pytest.MonkeyPatch, postgres: EmbeddedPostgres, tmp_path: Path, given: bool
) -> None:
    """A direct URL in the environment ended every process of an embedded server with `database-other`."""
    monkeypatch.setattr("ops.local.stack.shared_servers", lambda *_: nullcontext())
    monkeypatch.setattr("ops.local.stack.EmbeddedPostgres", lambda _: postgres)
    direct, database = SecretStr("postgresql://direct/d"), SecretStr("postgresql://pooled/d")
    settings = LocalSettings(
        local_folder=tmp_path, amqp_url=SecretStr("amqp://h"), database_url=database if given else None, database_direct_url=direct
    )

    async def environment() -> dict[str, str]:
        async with local_stack(settings) as stack:
            return stack.environment

    assert asyncio.run(environment())["DATABASE_DIRECT_URL"] == ("postgresql://direct/d" if given else "")


@pytest.mark.parametrize("option", ["timezone=UTC", "TimeZone=Asia/Seoul", "DateStyle=ISO", "application_name=x"])
async def test_option_that_a_pooler_keeps_is_accepted(database_url: str, option: str) -> None:
    """pgbouncer/pgbouncer #482: it sets these itself, and only where its session has another value."""
    async with open_pgbouncer(database_url) as url:
        assert (await examine_server("DATABASE_URL", f"{url}?{option}")).shares_sessions

"""`docs/configuration.md` and `.env.example`, from the settings book."""

import textwrap
from itertools import groupby

from ops.docgen.settings_catalog import PACKAGES, Setting, all_settings

SECTION_TITLES = {"bus": "Every process", "actors": "Actors", "gateway": "The gateway", "ops": "This machine's own parts"}
PAGE_HEADER = """\
# Configuration

Every setting is an environment variable; commands also read a file `.env` in the folder they are called in. `atelier settings`
prints this list, `atelier settings vlm` a part of it. Written by `make documents` from the settings classes.
"""
ENV_HEADER = """\
# Every setting with its default and unit. Copy to .env and take away the # where you want another value.
# Written by `make documents` from the settings classes; docs/configuration.md has the same as a table.
"""


def configuration_page() -> str:
    parts = [PAGE_HEADER]
    for room, settings in settings_by_package():
        parts.append(f"\n## {SECTION_TITLES[room]}\n\n| setting | default | unit | meaning |\n|---|---|---|---|\n")
        parts += [table_row(setting) for setting in settings]
    return "".join(parts)


COMPOSE_SECTION = """
# ---- docker-compose.yml: set these four

# The broker's password (secret; required)
# RABBITMQ_PASSWORD=

# The database's password (secret; required)
# POSTGRES_PASSWORD=

# The S3 server's password, at least 8 letters (secret; required)
# S3_PASSWORD=

# `name:key` pairs of those who may call the gateway (secret; required)
# GATEWAY_API_KEYS=

# ---- docker-compose.yml: may be set

# Which build of the images (text)
# ATELIER_TAG=latest

# Limits of each CPU actor, of each actor with a model, and of the parts (cores; bytes with a unit)
# ACTOR_CPUS=1
# ACTOR_MEMORY=1g
# GPU_ACTOR_CPUS=4
# GPU_ACTOR_MEMORY=16g
# RABBITMQ_MEMORY=2g
# POSTGRES_MEMORY=1g
# S3_MEMORY=1g

# Where this machine reaches the parts, on 127.0.0.1 (ports)
# GATEWAY_PUBLISHED_PORT=8080
# AMQP_PUBLISHED_PORT=5672
# RABBITMQ_UI_PUBLISHED_PORT=15672
# S3_PUBLISHED_PORT=9000
# VLLM_PUBLISHED_PORT=8000
# PROMETHEUS_PUBLISHED_PORT=9090
# GRAFANA_PUBLISHED_PORT=3000

# Profile `watch`: the administrator of Grafana (secret)
# GRAFANA_PASSWORD=change-me

# Profile `vllm`: what the server is started with (name; share of the device's memory; tokens; type; secret)
# VLLM_MODEL=Qwen/Qwen2.5-Coder-7B-Instruct
# VLLM_GPU_MEMORY_UTILIZATION=0.85
# VLLM_MAX_MODEL_LEN=4096
# VLLM_DTYPE=auto
# HUGGING_FACE_HUB_TOKEN=
"""
"""What docker-compose.yml reads beside the settings; tests/unit/ops/test_compose_file.py holds the two together."""


def settings_by_package() -> list[tuple[str, list[Setting]]]:
    ordered = sorted(all_settings(), key=lambda setting: PACKAGES.index(setting.room))
    return [(room, list(settings)) for room, settings in groupby(ordered, key=lambda setting: setting.room)]


def table_row(setting: Setting) -> str:
    others = f" or {', '.join(f'`{name}`' for name in setting.names[1:])}" if setting.names[1:] else ""
    default = "required" if setting.required else f"`{setting.default}`" if setting.default else ""
    cells = (f"`{setting.name}`{others}", default, setting.unit, setting.description)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def env_example() -> str:
    """`.env.example`: every line is a remark, so that a copy changes nothing until it is edited."""
    parts = [ENV_HEADER, COMPOSE_SECTION]
    for room, settings in settings_by_package():
        parts.append(f"\n# ---- {SECTION_TITLES[room]}\n")
        parts += [env_entry(setting) for setting in settings]
    return "".join(parts)


def env_entry(setting: Setting) -> str:
    facts = [setting.unit, "required" if setting.required else "", f"also {', '.join(setting.names[1:])}" if setting.names[1:] else ""]
    said = f"{setting.description or setting.book} ({'; '.join(fact for fact in facts if fact)})"
    remark = textwrap.fill(said, 130, initial_indent="\n# ", subsequent_indent="# ")
    return f"{remark}\n# {setting.name}={quote(setting.default or '')}\n"


def quote(value: str) -> str:
    """As a shell and dotenv both read it."""
    return f'"{value}"' if any(sign in value for sign in ' "#{}\\') else value

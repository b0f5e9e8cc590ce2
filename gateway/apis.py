"""The HTTP APIs on top of the core, by the names that GATEWAY_APIS may contain."""

from dataclasses import dataclass

from fastapi import APIRouter

from gateway.admin import dead_letters
from gateway.compat import ad_validation, chat, conversations, text_status, vertex
from gateway.console.chat_page import CHAT_PATH
from gateway.console.make import MAKE_PATH
from gateway.console.router import ROUTERS as CONSOLE_ROUTERS
from gateway.docs import asyncapi, openapi, swagger_ui
from gateway.jobs import routes as jobs
from gateway.openai import chat as openai_chat
from gateway.openai import completions, embeddings, image_edits, images, models, moderations, responses
from gateway.settings import GatewaySettings
from gateway.text.status import STATUS_STEPS

JOB_STEPS = ("job.get", "job.list", "job.events", "job.claim")


@dataclass(frozen=True)
class Api:
    """`query_steps`: the steps that it queries, whose queues the gateway declares. `upload_paths`: whose bodies may contain files.

    `form_paths`: whose bodies may be forms instead of JSON.
    """

    routers: tuple[APIRouter, ...]
    query_steps: tuple[str, ...] = ()
    upload_paths: frozenset[str] = frozenset()
    form_paths: frozenset[str] = frozenset()


def all_apis(vertex_settings: vertex.VertexSettings) -> dict[str, Api]:
    """In the order of their routes: of two with the same path, the first one is served."""
    return {
        "jobs": Api((jobs.router,), JOB_STEPS, jobs.UPLOAD_PATHS),
        "dead-letters": Api((dead_letters.router,), dead_letters.QUERY_STEPS),
        "vertex": Api((vertex.create_router(vertex_settings),), vertex.QUERY_STEPS, frozenset({vertex_settings.predict_route})),
        "ad-validation": Api((ad_validation.router,)),
        "text": Api(
            (chat.router, conversations.router, text_status.router),
            conversations.QUERY_STEPS,
            upload_paths=chat.UPLOAD_PATHS,
            form_paths=chat.UPLOAD_PATHS,
        ),
        "openai": Api(
            (
                openai_chat.router,
                completions.router,
                embeddings.router,
                images.router,
                image_edits.router,
                models.router,
                moderations.router,
                responses.router,
            ),
            ("job.get", *responses.QUERY_STEPS, *embeddings.QUERY_STEPS),
            upload_paths=openai_chat.UPLOAD_PATHS
            | images.UPLOAD_PATHS
            | moderations.UPLOAD_PATHS
            | responses.UPLOAD_PATHS
            | image_edits.FORM_PATHS,
            form_paths=image_edits.FORM_PATHS,
        ),
        "console": Api(
            CONSOLE_ROUTERS,
            (*JOB_STEPS, *dead_letters.QUERY_STEPS, *conversations.QUERY_STEPS),
            upload_paths=frozenset({CHAT_PATH, MAKE_PATH}),
        ),
        "docs": Api((openapi.router, swagger_ui.router, asyncapi.router)),
    }


def served_apis(settings: GatewaySettings, vertex_settings: vertex.VertexSettings) -> tuple[Api, ...]:
    return tuple(api for name, api in all_apis(vertex_settings).items() if name in settings.apis)


def query_steps(apis: tuple[Api, ...]) -> tuple[str, ...]:
    """The steps that these APIs and `/health` query."""
    return tuple(dict.fromkeys([*STATUS_STEPS, *(step for api in apis for step in api.query_steps)]))

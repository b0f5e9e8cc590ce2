"""The AsyncAPI page is complete, and has no scripts."""

import re

import yaml

from gateway.docs.asyncapi import ASYNCAPI_PATH, PAGE_HEADERS, asyncapi_html


def test_every_page_link_has_target() -> None:
    ids = set(re.findall(r'id="([^"]+)"', asyncapi_html()))
    links = set(re.findall(r'href="#([^"]+)"', asyncapi_html()))
    assert len(links) > 50
    assert links <= ids


def test_page_lists_every_message_without_script() -> None:
    messages = yaml.safe_load(ASYNCAPI_PATH.read_text())["components"]["messages"]
    assert len(messages) > 10
    assert all(f'id="message-{name}"' in asyncapi_html() for name in messages)
    assert "<script" not in asyncapi_html()
    assert PAGE_HEADERS["Content-Security-Policy"].startswith("default-src 'none'")

"""The page about the bus is whole, and nothing on it runs."""

import re

import yaml

from gateway.pages import DOCUMENT, POLICY, drawn


def test_every_link_of_the_page_leads_somewhere() -> None:
    ids = set(re.findall(r'id="([^"]+)"', drawn()))
    links = set(re.findall(r'href="#([^"]+)"', drawn()))
    assert len(links) > 50
    assert links <= ids


def test_every_message_is_on_the_page_and_no_script_is() -> None:
    messages = yaml.safe_load(DOCUMENT.read_text())["components"]["messages"]
    assert all(f'id="message-{name}"' in drawn() for name in messages)
    assert "<script" not in drawn()
    assert POLICY["Content-Security-Policy"].startswith("default-src 'none'")

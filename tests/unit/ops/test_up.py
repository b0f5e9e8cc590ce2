"""Who writes in the local workshop."""

from ops.up import needs_a_writer


def test_a_writer_is_started_where_the_text_actor_runs_and_nobody_named_one() -> None:
    assert needs_a_writer(["text", "upload"], {})
    assert not needs_a_writer(["upload"], {})
    assert not needs_a_writer(["text"], {"VLLM_SERVER_URL": "http://vllm:8000/v1"})
    assert not needs_a_writer(["text"], {"TEXT_ENGINE": "vllm"})

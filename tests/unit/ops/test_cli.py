"""The collection of garbage while a command is imported."""

import gc
from argparse import Namespace

from ops.cli import lazy_command


def test_import_of_a_command_leaves_the_collector_as_it_was() -> None:
    """A command may be called within another program: what is frozen is never collected."""
    before = gc.get_freeze_count()

    assert lazy_command("operator", "truth")(Namespace()) == 1
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, before)

"""Writes every document that comes from the code. `python -m ops.documents`, or `make documents`."""

import sys

from ops.documents.compatibility import breaks, released
from ops.documents.desk import stale, write
from ops.documents.schemas import exported

changed = stale()
write()
for broken in breaks(released(), exported()):
    sys.stderr.write(f"breaks the last release: {broken}\n")
sys.stdout.write("".join(f"written: {name}\n" for name in changed) or "All documents are up to date.\n")

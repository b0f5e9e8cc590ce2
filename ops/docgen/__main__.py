"""Writes every document that comes from the code. `python -m ops.docgen`, or `make documents`."""

import sys

from ops.docgen.compatibility import find_breaking_changes, released_schemas
from ops.docgen.contract_schemas import export_schemas
from ops.docgen.generate import stale_files, write_files

changed = stale_files()
write_files()
for broken in find_breaking_changes(released_schemas(), export_schemas()):
    sys.stderr.write(f"breaks the last release: {broken}\n")
sys.stdout.write("".join(f"written: {name}\n" for name in changed) or "All documents are up to date.\n")

"""`python -m ops.docgen`, or `make documents`."""

from ops.docgen.generate import main

main()

#!/bin/sh
# Stands in for Python: writes down how pip was called, and fails.
{
    echo "$@"
    echo $PIP_REQUIRE_VIRTUALENV $PIP_INDEX_URL
    cat "$8"
} > "$PIP_RECORD"
echo "ERROR: refused" >&2
exit 1

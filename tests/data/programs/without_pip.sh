#!/bin/sh
# Stands in for a Python that has no pip.
echo "python: No module named pip" >&2
exit 1

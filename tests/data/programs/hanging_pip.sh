#!/bin/sh
# Stands in for Python: says that the download has begun, and never ends.
touch "$PIP_STARTED"
exec sleep 60

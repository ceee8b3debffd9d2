"""Run a Python program and print its largest resident memory in KiB on the last line.

    python benchmarks/peak_memory.py PROGRAM ARGUMENT...

A small process of its own measures: the peak of a child begins with the memory of the process that
forks it.
"""

import resource
import subprocess
import sys

if __name__ == "__main__":
    subprocess.run([sys.executable, *sys.argv[1:]], check=True)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)

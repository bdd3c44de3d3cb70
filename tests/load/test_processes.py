"""What the processes below a server take counts with what it takes itself."""

import subprocess
import sys

from load.processes import cpu_seconds, family_cpu_seconds

BURN = "import sys, time\nwhile time.process_time() < 0.3: pass\n"
STAY = BURN + "print(flush=True)\nsys.stdin.read()"
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN!r}])
living = subprocess.Popen([sys.executable, "-c", {STAY!r}], stdout=subprocess.PIPE)
living.stdout.readline()
print("ready", flush=True)
sys.stdin.read()
"""


def test_the_cpu_of_a_family_is_that_of_children_which_live_and_which_have_ended():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        alone, family = cpu_seconds(process.pid), family_cpu_seconds(process.pid)
        process.stdin.close()
    assert 0.5 < family - alone < 1.5

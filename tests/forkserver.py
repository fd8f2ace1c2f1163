"""Runs scripts in processes of their own that begin with everything imported: importing torch takes
seconds each.

A line of JSON on stdin asks for a script, with its arguments, folder and files for its output; the
process's number and, when it has ended, its status are answered on stdout. What runs is a copy of
this process, which has imported and computed nothing but that; the environment is this process's.
"""

import json
import os
import runpy
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import utils.evaluation.test_script  # noqa: E402
import utils.preparation.official  # noqa: E402
import utils.reporting.comparison_plots  # noqa: E402
import utils.reporting.export  # noqa: E402
import utils.training.run  # noqa: E402, F401


def run(job):
    """The script, as `python SCRIPT ARGUMENTS` runs it; its exit status."""
    os.chdir(job["folder"])
    for number, path in enumerate((os.devnull, job["stdout"], job["stderr"])):
        os.dup2(os.open(path, os.O_RDWR), number)
    sys.argv = [job["script"], *job["arguments"]]
    sys.path[0] = str(Path(job["script"]).parent)
    status = 0
    try:
        runpy.run_path(job["script"], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def serve():
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            os._exit(run(json.loads(line)))
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()

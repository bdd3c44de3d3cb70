"""A job for the sandbox that does what parsers do at their worst."""

import os
import time

from rag.ingest import job as parse_job


def run(job, emit):
    """Do what `job["do"]` says."""
    match job["do"]:
        case "count":
            for number in range(job["to"]):
                emit({"number": number})
        case "pid":
            emit({"pid": os.getpid()})
        case "hang":
            emit({"pid": os.getpid()})
            while True:
                time.sleep(1)
        case "chatter":
            while True:
                time.sleep(0.01)
                emit({"still": "here"})
        case "spin":
            while True:
                pass
        case "abort":
            os.abort()
        case "exit":
            os._exit(7)
        case "eat":
            hoard = [bytearray(1 << 20) for _ in range(job["megabytes"])]
            emit({"megabytes": len(hoard)})
        case "raise":
            raise ValueError("a user's secret text")
        case "recurse":
            _recurse()


def abort_unless_careful(job, emit):
    """Parse, but only with care."""
    if not job.get("careful"):
        os.abort()
    parse_job.run(job, emit)


def abort_late_unless_careful(job, emit):
    """Crash when chunks were handed over."""
    parse_job.run(job, emit)
    if not job.get("careful"):
        os.abort()


def _recurse():
    return _recurse()

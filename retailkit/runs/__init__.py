"""Runs of notebooks: what they leave behind, how they are executed, what they must show.

Inside a notebook: `run = runs.start(...)`, `run.metric(...)`, `run.figure(...)`, `run.finish()`. Outside:
`execute` runs notebooks through papermill, `collect` gathers their records.
"""

from retailkit.runs.environment import environment
from retailkit.runs.execute import Result, execute, notebooks, parameters
from retailkit.runs.expect import check_record, expectations
from retailkit.runs.pages import publish
from retailkit.runs.progress import progress
from retailkit.runs.record import Run, claims, collect, published, read_record, run_dir, start, tables

__all__ = [
    "Result",
    "Run",
    "check_record",
    "claims",
    "collect",
    "environment",
    "execute",
    "expectations",
    "notebooks",
    "parameters",
    "progress",
    "publish",
    "published",
    "read_record",
    "run_dir",
    "start",
    "tables",
]

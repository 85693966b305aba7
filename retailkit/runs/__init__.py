"""Runs of notebooks: what they leave behind, how they are executed, what they must show.

Inside a notebook: `run = runs.start("20_training")`, `run.metric(...)`, `run.figure(...)`, `run.finish()`. Outside:
`execute` runs notebooks through papermill, `publish` makes pages of the results, `collect` gathers the records.
"""

# ruff: noqa: F401
from retailkit.runs.environment import environment
from retailkit.runs.expect import check_record, expectations
from retailkit.runs.parameters import changed, parameters, parse_parameters, parse_sweep
from retailkit.runs.record import Run, read_record, run_dir, start
from retailkit.runs.report import append_summary, publish, write_junit
from retailkit.runs.results import beside_published, claims, collect, published, tables, write_sweep, write_tables
from retailkit.runs.runner import Result, execute, notebooks

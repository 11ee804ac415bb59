"""The evaluation for people: a self-contained HTML page, and tables for the terminal."""

from ray_jobs.report.build import render_report, write_report
from ray_jobs.report.terminal import summary_tables

__all__ = ["render_report", "summary_tables", "write_report"]

"""What a run directory says, as a page: read once into `content.Report`, written as HTML and as Markdown."""

from dynbench.report.write import write_report

__all__ = ["write_report"]

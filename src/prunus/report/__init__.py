"""What people look at after a run: one HTML file, the same pictures as PNG, a comparison."""

from __future__ import annotations

from prunus.report.page import write_report

__all__ = ["write_report"]

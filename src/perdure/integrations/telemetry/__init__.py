"""OpenTelemetry: the spans of invocations (`spans`), and the metrics of this process as instruments (`metrics`).

Both go to the providers that the program has set. Knows no store and no worker.
"""

from __future__ import annotations

try:
    import opentelemetry.trace  # noqa: F401  # pyright: ignore[reportUnusedImport]  only for the error text
except ModuleNotFoundError as error:
    text = "OpenTelemetry is not installed: pip install 'perdure[telemetry]'"
    raise ModuleNotFoundError(text, name=error.name) from error

from perdure.integrations.telemetry.metrics import observe
from perdure.integrations.telemetry.spans import find_tracer

__all__ = ["find_tracer", "observe"]

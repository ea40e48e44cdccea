"""What the server counts, as a Prometheus page (text format 0.0.4)."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Metrics"]


@dataclass
class Metrics:
    """Counters since the start; all but `steps` are only touched by the event loop.

    Attributes:
        images: that were drawn whole.
        steps: that the pipeline has done, counted while an image is drawn.
        requests: answered, by HTTP status; 499 when the client went away.
        drawing_s: that were spent on images which were drawn whole.
        load_s: that the load took; None until it is done.
    """

    images: int = 0
    steps: int = 0
    requests: dict[int, int] = field(default_factory=dict)
    drawing_s: float = 0.0
    load_s: float | None = None

    def answered(self, status: int) -> None:
        """Count an answer."""
        self.requests[status] = self.requests.get(status, 0) + 1

    def page(self, *, running: int, waiting: int) -> str:
        """The page; what runs and waits is known elsewhere."""
        lines: list[str] = []

        def add(name: str, kind: str, text: str, *values: tuple[str, float]) -> None:
            lines.extend((f"# HELP {name} {text}", f"# TYPE {name} {kind}"))
            lines.extend(f"{name}{labels} {value:.17g}" for labels, value in values)

        add("images_requests_running", "gauge", "Requests that are being drawn.", ("", running))
        add("images_requests_waiting", "gauge", "Requests that wait for their turn.", ("", waiting))
        statuses = [(f'{{status="{status}"}}', count) for status, count in sorted(self.requests.items())]
        add("images_requests_total", "counter", "Requests for images that were answered, by status.", *statuses)
        add("images_generated_total", "counter", "Images that were drawn.", ("", self.images))
        add("images_steps_total", "counter", "Steps that the pipeline has done.", ("", self.steps))
        add("images_drawing_seconds_total", "counter", "Seconds spent on drawn images.", ("", self.drawing_s))
        if self.load_s is not None:
            add("images_load_seconds", "gauge", "Seconds that the load took.", ("", self.load_s))
        return "\n".join(lines) + "\n"

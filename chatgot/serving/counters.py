"""What the server has done so far, as Prometheus reads it."""

from collections import Counter

from chatgot.serving.batching import Batcher

FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Counters:
    """Counts answers and tokens; the event loop alone touches it."""

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()  # by status
        self.running = 0  # requests that are being answered
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self._first_token: Counter[float] = Counter()  # by the bucket's upper edge
        self._first_token_sum_s = 0.0
        self._first_token_count = 0

    def first_token(self, seconds: float) -> None:
        """Count how long somebody waited for the first token."""
        self._first_token_sum_s += seconds
        self._first_token_count += 1
        for edge in FIRST_TOKEN_S:
            if seconds <= edge:
                self._first_token[edge] += 1

    def text(self, batcher: Batcher) -> str:
        """Return everything in Prometheus's text format, version 0.0.4."""
        lines = ["# TYPE chatgot_requests_total counter"]
        for status, count in sorted(self.requests.items()):
            lines.append(f'chatgot_requests_total{{status="{status}"}} {count}')
        gauges = {
            "requests_running": self.running,
            "completions_active": batcher.active,
            "completions_waiting": batcher.waiting,
        }
        for name, value in gauges.items():
            lines += [f"# TYPE chatgot_{name} gauge", f"chatgot_{name} {value}"]
        totals = {
            "prompt_tokens_total": self.prompt_tokens,
            "generated_tokens_total": self.generated_tokens,
        }
        for name, value in totals.items():
            lines += [f"# TYPE chatgot_{name} counter", f"chatgot_{name} {value}"]
        name = "chatgot_first_token_seconds"
        lines.append(f"# TYPE {name} histogram")
        for edge in FIRST_TOKEN_S:
            lines.append(f'{name}_bucket{{le="{edge:g}"}} {self._first_token[edge]}')
        lines.append(f'{name}_bucket{{le="+Inf"}} {self._first_token_count}')
        lines.append(f"{name}_sum {self._first_token_sum_s:.6f}")
        lines.append(f"{name}_count {self._first_token_count}")
        return "\n".join(lines) + "\n"

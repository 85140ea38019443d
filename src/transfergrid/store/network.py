"""Whether a server answers, known in time."""

from __future__ import annotations

import http.client
import threading
import urllib.error
import urllib.request

from transfergrid.errors import one_line


def why_silent(url: str, *, timeout_s: float) -> str | None:
    """None where a web server answers at the address, through the environment's proxy, whatever it says; else the
    reason, on one line."""
    reasons: list[str | None] = []

    def ask() -> None:
        reason = None
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout_s).close()
        except urllib.error.HTTPError as answer:
            answer.close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = one_line(error)
        reasons.append(reason)

    # In a thread, because a name server that is silent knows no time limit of ours.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s + 0.5)
    return reasons[0] if reasons else f"timed out after {timeout_s:g} s"

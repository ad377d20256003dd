"""What a worker process does: shards of a campaign that it opens once."""

from __future__ import annotations

import json
import threading

_lock = threading.Lock()
_opened: dict[tuple, object] = {}  # the one campaign that this process works on


def run_shard(task_json: str, options: dict, trials):
    """(FAULT rows, OUTCOME rows) of some trials; the same in every process.

    options  "way" and "memory" of campaign.Options; "rows", the fault list or None

    Threads of one process take turns: a worker should have one thread.
    """
    from fsim.campaign.campaign import Campaign, Options
    from fsim.threads import use_threads

    key = task_json, options["way"], options["memory"]
    with _lock:
        if key not in _opened:
            _opened.clear()
            use_threads(1)
            made = Options(options["way"], options["memory"], 1)
            _opened[key] = Campaign(json.loads(task_json), made, rows=options["rows"])
        return _opened[key].shard(trials)

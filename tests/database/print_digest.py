"""Prints what this process selects: its selection digest, then a line for each shipped record's site and for each site
of the databases named. Arguments: a number by which the order of every folder's listing is shuffled, then databases to
name in the option.
"""

from __future__ import annotations

import os
import random
import sys
from typing import Any

order, *named = sys.argv[1:]
chance = random.Random(int(order))
listdir = os.listdir


def shuffled_listdir(*arguments: Any) -> list[Any]:
    found = listdir(*arguments)
    chance.shuffle(found)
    return found


os.listdir = shuffled_listdir

import prefetch_compiler  # noqa: E402
from prefetch_compiler.database.overlay import Overlays, load  # noqa: E402
from prefetch_compiler.device import INTERPRETER, REFERENCE_DEVICES  # noqa: E402
from prefetch_compiler.select.digest import digest_of  # noqa: E402
from prefetch_compiler.select.selection import select  # noqa: E402

options = {"kvprefetch.tuning_db": named, "max_autotune": True}
print(prefetch_compiler.selection_digest(options))
databases: Overlays = load(named)
for profile in (INTERPRETER, REFERENCE_DEVICES[90]):
    print(digest_of(profile, databases))
    keys = sorted({record.key for layer in databases.layers for one in layer for record in one.records})
    for key in keys:
        for batch in sorted({key.batch_bucket, key.batch_bucket * 2}):
            spec = key.at(batch=batch, capacity=key.capacity_bucket).spec()
            found = select(spec, profile, databases)
            print(
                found.template.name, found.config.encode(), found.verdict.value, found.reason, found.tuned_at, sep=" | "
            )

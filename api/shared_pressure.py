"""Tells other processes how many requests of each tenant are at work here, and hears the same of them: shares are of all together."""

import asyncio

import orjson

from api.admission import Admission
from rag.ports import Board

CALM_SECONDS, PRESSED_SECONDS = 1.0, 0.25
MOST_TENANTS = 1000


async def share_pressure(admission: Admission, board: Board) -> None:
    """Exchange until cancelled: four times a second under pressure, else once. What cannot be heard counts for nothing.

    Of processes in calm nothing counts: they have places for everyone.
    """
    while True:
        limit, active = admission.at_work
        busiest = dict(sorted(active.items(), key=lambda item: -item[1])[:MOST_TENANTS])
        lines = await board.exchange(orjson.dumps([limit, busiest]))
        elsewhere_limit, elsewhere = 0.0, dict[str, int]()
        for line in lines:
            other_limit, tenants = _read(line)
            elsewhere_limit += other_limit
            for tenant, number in tenants.items() if other_limit else ():
                elsewhere[tenant] = elsewhere.get(tenant, 0) + number
        admission.hear(elsewhere_limit, elsewhere)
        await asyncio.sleep(PRESSED_SECONDS if admission.pressed or elsewhere_limit else CALM_SECONDS)


def _read(line: bytes) -> tuple[float, dict[str, int]]:
    """What a process said; nothing where it is of another version and speaks otherwise."""
    try:
        limit, tenants = orjson.loads(line)
        return float(limit), {str(tenant): int(number) for tenant, number in tenants.items()}
    except (ValueError, TypeError, AttributeError):
        return 0.0, {}

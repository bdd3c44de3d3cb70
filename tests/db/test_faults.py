"""db/faults.py: what is tried again is what was certainly not made."""

import pymysql
import pytest
from peewee import OperationalError

from db.faults import fault_of


def mysql(code: int) -> OperationalError:
    error = OperationalError()
    error.orig = pymysql.err.OperationalError(code, "text of the database")
    return error


@pytest.mark.parametrize("code", [1213, 1020, 1305])
def test_a_deadlock_is_begun_again_also_when_it_took_the_savepoint_with_it(code: int) -> None:
    fault = fault_of("mysql", mysql(code))
    assert (fault.reason, fault.lost, fault.again) == ("others changed the same rows at the same time", False, True)


@pytest.mark.parametrize("code", [1021, 1045, 1205, 3024, 4242])
def test_what_would_fail_again_is_not(code: int) -> None:
    assert not fault_of("mysql", mysql(code)).again

"""db/faults.py: what is tried again is what was certainly not made."""

import psycopg
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


def postgres(state: str) -> OperationalError:
    error = OperationalError()
    error.orig = psycopg.errors.lookup(state)("text of the database")
    return error


@pytest.mark.parametrize("state", ["40000", "40001", "40P01"])
def test_a_transaction_that_postgresql_has_undone_is_begun_again(state: str) -> None:
    fault = fault_of("postgresql", postgres(state))
    assert (fault.reason, fault.lost, fault.again, fault.undone) == ("others changed the same rows at the same time", False, True, True)


@pytest.mark.parametrize("state", ["40003", "53100", "55P03", "57014"])
def test_what_postgresql_may_have_done_or_would_fail_again_is_not(state: str) -> None:
    assert not fault_of("postgresql", postgres(state)).again


@pytest.mark.parametrize("state", ["08006", "57P01"])
def test_a_lost_connection_is_no_word_that_anything_was_undone(state: str) -> None:
    fault = fault_of("postgresql", postgres(state))
    assert (fault.lost, fault.again, fault.undone) == (True, True, False)

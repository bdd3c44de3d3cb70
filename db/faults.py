"""What a database's error means: in words for people (never the database's own), and whether the transaction may be tried again."""

from dataclasses import dataclass

from peewee import PeeweeException

# SQLSTATE, or its first two characters -> what it means (PostgreSQL, appendix A of its manual)
POSTGRES = {
    "28": "it refuses our user or password",
    "3D": "it has no database of that name",
    "42501": "our user may not do that",
    "53100": "its disk is full",
    "53200": "it is out of memory",
    "53300": "it has too many connections",
    "55P03": "a row stayed locked for too long",
    "57014": "a statement took too long",
    "57P03": "it is starting or stopping",
    "57P": "it is stopping",
    "58": "it cannot read or write its files",
    "25006": "it is read-only",
    "40": "others changed the same rows at the same time",
    "XX": "its data are damaged",
    "08": "the connection was lost",
}
# serialization_failure, deadlock_detected, transaction_rollback; not 40003, which says that nobody knows
POSTGRES_AGAIN = {"40000", "40001", "40P01"}
# at the start of a connection libpq gives no SQLSTATE, only text
POSTGRES_TEXTS = {
    "password authentication failed": "it refuses our user or password",
    "no password supplied": "it refuses our user or password",
    "no pg_hba.conf entry": "it refuses our user or password",
    "does not exist": "it has no database, or no user, of that name",
    "too many clients": "it has too many connections",
    "remaining connection slots": "it has too many connections",
    "too many connections": "it has too many connections",
    "starting up": "it is starting or stopping",
    "shutting down": "it is starting or stopping",
    "in recovery mode": "it is starting or stopping",
    "connection refused": "nothing listens at its address",
    "no answer in time": "it gave no answer in time",
    "timeout expired": "it gave no answer in time",
    "could not translate host name": "its host name is unknown",
    "failed to resolve host": "its host name is unknown",
    "certificate": "the encryption of the connection failed",
}
# https://dev.mysql.com/doc/mysql-errors/8.0/en/ and https://mariadb.com/kb/en/mariadb-error-code-reference/
MYSQL = {
    1040: "it has too many connections",
    1203: "it has too many connections",
    1226: "it has too many connections",
    1044: "our user may not do that",
    1045: "it refuses our user or password",
    1142: "our user may not do that",
    1698: "it refuses our user or password",
    1049: "it has no database of that name",
    1021: "its disk is full",
    1114: "its disk is full",
    1026: "it cannot write its files",
    1290: "it is read-only",
    1792: "it is read-only",
    1836: "it is read-only",
    1205: "a row stayed locked for too long",
    1969: "a statement took too long",
    3024: "a statement took too long",
    1213: "others changed the same rows at the same time",
    1020: "others changed the same rows at the same time",
    1305: "others changed the same rows at the same time",
    1053: "it is stopping",
    1927: "the connection was lost",
    2003: "nothing listens at its address",
    2005: "its host name is unknown",
    2006: "the connection was lost",
    2013: "the connection was lost",
    2026: "the encryption of the connection failed",
}
MYSQL_LOST = {0, 1053, 1077, 1152, 1158, 1159, 1160, 1161, 1927, 2002, 2003, 2005, 2006, 2013, 2014, 2055, 4031}
# 1305: the savepoint is gone. A deadlock inside it has undone the whole transaction, and only then was it to be rolled back to.
MYSQL_AGAIN = {1213, 1020, 1305}


@dataclass(frozen=True, slots=True)
class Fault:
    """`lost`: the connection is of no use any more. `again`: the transaction was certainly not made, and may go well next time.

    Where the connection was lost that is certain only if the COMMIT had not been sent.
    """

    reason: str
    lost: bool = False
    again: bool = False

    @property
    def undone(self) -> bool:
        """The database itself says that it has rolled back; also in answer to a COMMIT."""
        return self.again and not self.lost


def fault_of(kind: str, error: PeeweeException) -> Fault:
    """What the error of a database of that kind means."""
    cause = getattr(error, "orig", error)
    if kind == "postgresql":
        return _postgres(getattr(cause, "sqlstate", None), str(cause).lower())
    if kind == "mysql":
        return _mysql(cause)
    name = getattr(cause, "sqlite_errorname", "") or type(error).__name__
    return Fault(f"the file: {name.removeprefix('SQLITE_').lower()}", lost=True)


def _postgres(state: str | None, text: str) -> Fault:
    if state is None:
        reason = next((reason for part, reason in POSTGRES_TEXTS.items() if part in text), "the connection was lost")
        return Fault(reason, lost=True, again="timeout" not in text and "in time" not in text)
    reason = next((POSTGRES[state[:length]] for length in (5, 3, 2) if state[:length] in POSTGRES), f"error {state}")
    if state == "0A000":  # a statement that was prepared before the schema changed
        return Fault(reason, lost=True, again=True)
    lost = state.startswith(("08", "57P"))
    return Fault(reason, lost=lost, again=lost or state in POSTGRES_AGAIN)


def _mysql(cause: object) -> Fault:
    arguments = getattr(cause, "args", ())
    code = arguments[0] if arguments and isinstance(arguments[0], int) else 0
    text = str(cause).lower()
    if "not known" in text:
        return Fault("its host name is unknown", lost=True)
    if "timed out" in text:
        return Fault("it gave no answer in time", lost=True)
    lost = code in MYSQL_LOST
    return Fault(MYSQL.get(code, "the connection was lost" if lost else f"error {code}"), lost=lost, again=lost or code in MYSQL_AGAIN)

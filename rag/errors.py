"""Every error Millrace raises on purpose, as one tree.

    MillraceError
    ├── InvalidArgument        the caller's value is wrong            ── TooLarge · UnsupportedType
    ├── Unauthenticated        no key, or one that is not valid
    ├── PermissionDenied       a known thing the caller may not touch
    ├── NotFound               unknown, or somebody else's: the two are not told apart
    ├── Conflict               the thing's state forbids it (name taken, already running)
    ├── Overloaded             a bounded queue is full; carries retry_after_seconds ── TooManyRequests
    ├── Unavailable            a part (database, store, blobs) cannot answer now; carries retry_after_seconds
    │   ├── DatabaseUnavailable  the database, that is; nothing was changed
    │   │   └── OutcomeUnknown   it fell silent while committing: the change may have been made
    │   ├── WritesHeld         the data is being moved to other parts: it can only be read now
    │   └── Corrupt            derived data is damaged and is being rebuilt
    ├── Damaged                a stored file's bytes are not those that were stored
    ├── DeadlineExceeded       the time given to a stage ran out
    ├── ParseFailed            a document could not be turned into text ── Encrypted · ParserKilled
    ├── ProviderError          a model endpoint failed; never carries its text, key or status
    │   ├── ProviderRefused    it rejected the request or our credentials (4xx)
    │   ├── ProviderBusy       it asked for patience (429, 503)
    │   ├── ProviderUnreachable  no connection, reset, or no answer in time
    │   └── ProviderBadReply   it answered something that is not its own wire format
    └── SettingsError          a setting is unknown or malformed; the server does not start

Messages are in lower case, name the thing and the limit, and never hold a key, a vendor's body or a user's text.
"""


class MillraceError(Exception):
    """Base of all errors raised on purpose. `str(error)` is safe to show to a caller."""


class InvalidArgument(MillraceError):
    """The caller's value is wrong."""


class TooLarge(InvalidArgument):
    """A body, file or value is over its limit."""


class UnsupportedType(InvalidArgument):
    """A file's type is not one that Millrace reads."""


class Unauthenticated(MillraceError):
    """No API key, or one that is not valid."""


class PermissionDenied(MillraceError):
    """The caller may see the thing but not do this to it."""


class NotFound(MillraceError):
    """The thing is unknown, or belongs to another tenant."""


class Conflict(MillraceError):
    """The thing's present state forbids the operation."""


class Overloaded(MillraceError):
    """A bounded queue is full. Nothing was done; try again after `retry_after_seconds`."""

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TooManyRequests(Overloaded):
    """This caller asks for more than its share, or than it may by its limit; others are served."""


class Unavailable(MillraceError):
    """A part of the server cannot answer now. Try again after `retry_after_seconds`."""

    def __init__(self, message: str, retry_after_seconds: float = 2.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DatabaseUnavailable(Unavailable):
    """The database cannot answer now; the transaction was not made."""


class OutcomeUnknown(DatabaseUnavailable):
    """The database fell silent while it committed: the transaction was made or not, and nobody can tell yet."""


class WritesHeld(Unavailable):
    """The data is being moved to other parts, or has been: here it can be read, and is changed no more."""


class Corrupt(Unavailable):
    """Derived data (text index, vector file) is damaged; it is being rebuilt from the record."""


class Damaged(MillraceError):
    """A stored file's bytes are not those that were stored; reading it again will not help."""


class DeadlineExceeded(MillraceError):
    """The time given to a stage ran out before it finished."""


class ParseFailed(MillraceError):
    """A document could not be turned into text. The message says why, for the person who uploaded it."""


class Encrypted(ParseFailed):
    """The document is protected by a password."""


class ParserKilled(ParseFailed):
    """The parser ran over its deadline or memory limit, or crashed, and was killed."""


class ProviderError(MillraceError):
    """A model endpoint failed. Holds our own words only, never the vendor's."""


class ProviderRefused(ProviderError):
    """The endpoint rejected the request or our credentials; asking again will not help."""


class ProviderBusy(ProviderError):
    """The endpoint asked for patience."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ProviderUnreachable(ProviderError):
    """The endpoint refused the connection, dropped it, or did not answer in time."""


class ProviderBadReply(ProviderError):
    """The endpoint answered something that is not its own wire format."""


class SettingsError(MillraceError):
    """A setting is unknown or malformed. One line, fit for the console."""


def why_failed(failure: BaseException) -> str:
    """Why a step failed, fit to show to a caller: what our own errors say; of others only whether time ran out."""
    if isinstance(failure, MillraceError):
        return str(failure)
    return "no answer in time" if isinstance(failure, TimeoutError) else "an unexpected error"

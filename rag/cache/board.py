"""A board in Redis where each process writes a line and reads the others'."""

from collections.abc import Sequence

from rag.cache.redis_cache import PREFIX, RedisClient
from rag.errors import Unavailable

STALE_SECONDS = 2.0
KEY = PREFIX + "board"

# Each field is "<time> <line>". Whoever comes by takes away what is old: a process that died says nothing any more.
EXCHANGE_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.3f ', now) .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], 60000)
local fields, others = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #fields, 2 do
    local at, line = fields[i + 1]:match('^(%S+) (.*)$')
    if tonumber(at) < now - tonumber(ARGV[3]) then
        redis.call('HDEL', KEYS[1], fields[i])
    elseif fields[i] ~= ARGV[1] then
        others[#others + 1] = line
    end
end
return others
"""


class RedisBoard:
    """A `Board` of all processes with the same Redis."""

    def __init__(self, client: RedisClient, name: str) -> None:
        """`name` is this process's own, unlike any other's."""
        self._client = client
        self._name = name
        self._script = client.redis.register_script(EXCHANGE_SCRIPT)

    async def exchange(self, line: bytes) -> Sequence[bytes]:
        """As `Board.exchange`."""
        try:
            return await self._client.call(self._script(keys=[KEY], args=[self._name, line, STALE_SECONDS]))
        except Unavailable:
            return []

#!lua
-- Merges one journal's absolute totals of one (account, key, UTC day) into the shared counters.
--
-- KEYS[1]  mp:{ACCOUNT}:usage:KEY:YYYYMMDD   for people: MODEL|FIELD -> integer, the sum over all journals
-- KEYS[2]  mp:{ACCOUNT}:books:KEY:YYYYMMDD   for us: JOURNAL|MODEL|FIELD -> integer, that journal's own total
-- ARGV[1]  journal id
-- ARGV[2]  when both hashes expire, Unix time in seconds
-- ARGV[3]  n, the number of FIELDs; ARGV[4] to ARGV[3+n] their names, `requests` first
-- then for each model: its name; the `requests` that Redis acknowledged for it; n absolute totals
--          (requests, tokens, nano-dollars: integers from 0 to 2^63-1)
--
-- Returns 1 if Redis holds fewer requests than it had acknowledged (it lost data: everything must be sent
-- again), else 0.
-- Clock: none; only the expiry, set once and never extended, is watched by Redis' own.
-- Atomic because a total in the books and its share in the usage hash must change together: then a message
-- that is repeated, late or overtaken finds totals that are not smaller than its own, and changes nothing.
-- The shebang makes Redis refuse the whole script when memory is out, instead of stopping it half-way.
-- Totals stay strings: numbers in Lua are floats, exact to 2^53 only.

local usage, books = KEYS[1], KEYS[2]
local journal, expires_at, n = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lost_data = 0

local function smaller(a, b)
  return #a < #b or (#a == #b and a < b)
end

-- One hash without the other (removed by hand) cannot be told apart from other sums: begin both anew,
-- and let each worker find out by its acknowledged requests.
if redis.call('EXISTS', usage) ~= redis.call('EXISTS', books) then
  redis.call('DEL', usage, books)
end

for at = 4 + n, #ARGV, n + 2 do
  local model, acked = ARGV[at], ARGV[at + 1]
  for i = 1, n do
    local field = model .. '|' .. ARGV[3 + i]
    local own = journal .. '|' .. field
    local total, known = ARGV[at + 1 + i], redis.call('HGET', books, own)
    if i == 1 and smaller(known or '0', acked) then
      lost_data = 1
    end
    if not known or smaller(known, total) then
      redis.call('HINCRBY', usage, field, total) -- first: it alone may fail (overflow), and then nothing has changed
      if known and known ~= '0' then
        redis.call('HINCRBY', usage, field, '-' .. known)
      end
      redis.call('HSET', books, own, total)
    end
  end
end

redis.call('EXPIREAT', usage, expires_at, 'NX')
redis.call('EXPIREAT', books, expires_at, 'NX')
return lost_data

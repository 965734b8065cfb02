#!lua
-- Brings one account's books up to date, and grants quota: all of it, or nothing, in one step.
--
-- KEYS   for each day book two hashes, then one hash for each counter; all bear the hash tag {ACCOUNT}
--   mp:{ACCOUNT}:usage:KEY:YYYYMMDD    for people: MODEL|FIELD -> integer, the sum over all journals
--   mp:{ACCOUNT}:books:KEY:YYYYMMDD    for us: JOURNAL|MODEL|FIELD -> integer, that journal's own total
--   mp:{ACCOUNT}:quota:k:KEY:RULE:WINDOW, mp:{ACCOUNT}:quota:a:RULE:WINDOW
--       used, reserved          sums over all journals
--       u:JOURNAL r:JOURNAL     what that journal has used, and what it holds for live exchanges and as credit
--       c:JOURNAL               the part of r that is credit: granted ahead, held by no exchange yet
--       v:JOURNAL x:JOURNAL     its last message; when its hold lapses unless renewed (ms)
--       call                    when somebody missed what others hold as credit (ms)
--       swept                   when lapsed holds were last looked for (ms)
-- ARGV   lease in ms; how many day books, counters, wants, fields; the fields' names, `requests` first; then
--   a day book   journal; when both hashes expire (Unix s); 1 if the sums shall be made anew; how many models; for each
--                  its name; the `requests` that Redis acknowledged for it; one absolute total per field
--   a counter    journal; version (0: a journal that is only read, it holds nothing); acknowledged version
--                  (0: none; then the sums are made anew from their parts);
--                  acknowledged used; used; reserved (with credit); credit; limit (-1: unknown, grant nothing);
--                  the highest `used` that the sender ever saw; how much credit it wishes for in addition;
--                  how much must be left so that credit may be given; when the hash expires (Unix s; 0 never; -n: in n s)
--   a want       least and most output tokens; how many claims; for each claim
--                  its counter (from 1); an amount up front; an amount per output token granted
--
-- Returns {time in ms, 1 if Redis holds less than it had acknowledged, counters..., wants...}
--   a counter    used, reserved, credit added, 1 if credit must be given back
--   a want       output tokens granted (>= 0); or -1: denied; -2: others hold credit that is being called in, ask
--                  again soon; -3: the message was overtaken, nothing was done. Then the claim that decided it, from 1.
--
-- Clock: Redis' own. Amounts are integers from 0 to 2^53: exact as Lua's floats; day totals stay strings, up to 2^63.
-- Atomic because a total and its share in a sum must change together: then a message that is lost, repeated, late or
-- overtaken does no harm; and because all claims of a want are granted, or none.
-- The shebang makes Redis refuse the whole script when memory is out, instead of stopping it half-way.

local cursor = 0
local function take()
  cursor = cursor + 1
  return ARGV[cursor]
end
local function number()
  return tonumber(take())
end
local function text(amount) -- tostring would write 1e+15
  return string.format('%.0f', amount)
end

local CALL_MS = 2000 -- for so long after a call nobody is given credit

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease_ms, day_books, counter_count, want_count, n = number(), number(), number(), number(), number()
local fields = {}
for i = 1, n do
  fields[i] = take()
end
local lost_data = 0

-- Day books.

local function smaller(a, b)
  return #a < #b or (#a == #b and a < b)
end

for book = 1, day_books do
  local usage, books = KEYS[2 * book - 1], KEYS[2 * book]
  local journal, expires_at, anew, models = take(), take(), number(), number()
  -- One hash without the other (removed by hand) cannot be told apart from other sums: begin both anew,
  -- and let each worker find out by its acknowledged requests.
  if redis.call('EXISTS', usage) ~= redis.call('EXISTS', books) then
    redis.call('DEL', usage, books)
  end
  for _ = 1, models do
    local model, acked = take(), take()
    for i = 1, n do
      local total = take()
      local field = model .. '|' .. fields[i]
      local own = journal .. '|' .. field
      local known = redis.call('HGET', books, own)
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
  if anew == 1 then
    -- After a loss the sums may hold what their parts do not: a log that was cut within a transaction, and then
    -- went on, is replayed with the half of it.
    local all = redis.call('HGETALL', books)
    redis.call('DEL', usage)
    for i = 1, #all, 2 do
      redis.call('HINCRBY', usage, string.match(all[i], '^[^|]*|(.*)$'), all[i + 1])
    end
  end
  redis.call('EXPIREAT', usage, expires_at, 'NX')
  redis.call('EXPIREAT', books, expires_at, 'NX')
end

-- Counters: what this journal says of itself.

-- The sums of a counter, from their parts.
local function sums_of(key)
  local used, reserved = 0, 0
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    local kind = string.sub(all[i], 1, 2)
    if kind == 'u:' then
      used = used + tonumber(all[i + 1])
    elseif kind == 'r:' then
      reserved = reserved + tonumber(all[i + 1])
    end
  end
  return used, reserved
end

local counters = {}
local overtaken = false
for i = 1, counter_count do
  local c = { key = KEYS[2 * day_books + i], journal = take(), version = number(), acked_version = number() }
  c.acked_used, c.own_used, c.own_reserved, c.own_credit = number(), number(), number(), number()
  c.limit, c.seen, c.wish, c.far, c.expires_at = number(), number(), number(), number(), number()
  local j = c.journal
  local known = redis.call('HMGET', c.key, 'used', 'reserved', 'u:' .. j, 'r:' .. j, 'v:' .. j, 'call', 'swept')
  local used, reserved, version = tonumber(known[3]) or 0, tonumber(known[4]) or 0, tonumber(known[5]) or 0
  if used < c.acked_used or version < c.acked_version then
    lost_data = 1
  end
  c.own_used = math.max(c.own_used, used)
  c.is_only_read = c.version == 0 -- nobody writes that journal any more: it holds nothing
  c.holds = c.version > version
  if not c.holds and not c.is_only_read then
    c.own_reserved = reserved -- the message is an old one
    overtaken = true
  end
  local all_used, all_reserved = tonumber(known[1]) or 0, tonumber(known[2]) or 0
  if c.acked_version == 0 then -- the sender begins anew, perhaps after a loss: see above
    all_used, all_reserved = sums_of(c.key)
  end
  c.used = all_used + c.own_used - used
  c.reserved = all_reserved + c.own_reserved - reserved
  c.called = now - (tonumber(known[6]) or 0) < CALL_MS
  c.cleared, c.added, c.others_credit = {}, 0, 0
  c.is_due_for_sweep = now - (tonumber(known[7]) or 0) > math.abs(lease_ms)
  counters[i] = c
end

-- Wants.

-- How many output tokens all claims leave room for, and the claim that leaves least; below 0: not even the amount up front.
local function room(want, called_in)
  local fits, tightest = want.most, 1
  for i, claim in ipairs(want.claims) do
    local c = claim.counter
    local left = c.limit - math.max(c.used, c.seen) - c.reserved - claim.up_front
    if called_in then
      left = left + c.others_credit
    end
    local tokens = want.most
    if left < 0 then
      tokens = -1
    elseif claim.each > 0 then
      tokens = math.min(tokens, math.floor(left / claim.each))
    end
    if tokens < fits then
      fits, tightest = tokens, i
    end
  end
  return fits, tightest
end

-- Free what journals hold whose lease has lapsed, and see who holds credit.
local function look_around(c)
  if c.looked_around then
    return
  end
  c.looked_around = true
  local all = redis.call('HGETALL', c.key)
  local held, credit, lapses_at = {}, {}, {}
  for i = 1, #all, 2 do
    local kind, journal = string.sub(all[i], 1, 2), string.sub(all[i], 3)
    if journal ~= c.journal then
      if kind == 'r:' then
        held[journal] = tonumber(all[i + 1])
      elseif kind == 'c:' then
        credit[journal] = tonumber(all[i + 1])
      elseif kind == 'x:' then
        lapses_at[journal] = tonumber(all[i + 1])
      end
    end
  end
  for journal, amount in pairs(held) do
    if amount > 0 and (lapses_at[journal] or 0) < now then
      c.reserved = c.reserved - amount
      c.cleared[#c.cleared + 1] = journal
    else
      c.others_credit = c.others_credit + (credit[journal] or 0)
    end
  end
end

local wants = {}
for w = 1, want_count do
  local want = { least = number(), most = number(), claims = {} }
  for i = 1, number() do
    want.claims[i] = { counter = counters[number()], up_front = number(), each = number() }
  end
  local granted, tightest = -3, 0
  if not overtaken then
    granted, tightest = room(want, false)
    if granted < want.least then
      for _, claim in ipairs(want.claims) do
        look_around(claim.counter)
      end
      granted, tightest = room(want, false)
    end
    if granted >= want.least then
      for _, claim in ipairs(want.claims) do
        local amount = claim.up_front + claim.each * granted
        claim.counter.reserved = claim.counter.reserved + amount
        claim.counter.own_reserved = claim.counter.own_reserved + amount
      end
    elseif room(want, true) >= want.least then
      granted = -2
      for _, claim in ipairs(want.claims) do
        if claim.counter.others_credit > 0 then
          claim.counter.called, claim.counter.call = true, now
        end
      end
    else
      granted = -1
    end
  end
  wants[w] = { granted, tightest }
end

-- Credit, far from the limit; and all of it into the hashes.

local reply = { now, lost_data }
for _, c in ipairs(counters) do
  if c.is_due_for_sweep and c.reserved > c.own_reserved then
    look_around(c)
  end
  local left = c.limit - math.max(c.used, c.seen) - c.reserved
  if c.holds and c.wish > 0 and not c.called and lost_data == 0 and left >= c.far then
    c.added = math.min(c.wish, math.floor(left / 16))
    c.reserved, c.own_reserved = c.reserved + c.added, c.own_reserved + c.added
  end
  local j = c.journal
  local changes = { 'used', text(c.used), 'reserved', text(c.reserved), 'u:' .. j, text(c.own_used) }
  local function set(field, value)
    changes[#changes + 1] = field
    changes[#changes + 1] = value
  end
  if c.holds then
    set('r:' .. j, text(c.own_reserved))
    set('c:' .. j, text(c.own_credit + c.added))
    set('v:' .. j, text(c.version))
    set('x:' .. j, text(now + lease_ms))
  elseif c.is_only_read and c.own_reserved == 0 then
    set('r:' .. j, '0')
    set('c:' .. j, '0')
  end
  if c.call then
    set('call', text(c.call))
  end
  if c.looked_around then
    set('swept', text(now))
  end
  for _, journal in ipairs(c.cleared) do
    set('r:' .. journal, '0')
    set('c:' .. journal, '0')
  end
  redis.call('HSET', c.key, unpack(changes))
  if c.expires_at > 0 then
    redis.call('EXPIREAT', c.key, text(c.expires_at), 'NX')
  elseif c.expires_at < 0 then
    redis.call('EXPIRE', c.key, text(-c.expires_at))
  end
  reply[#reply + 1] = c.used
  reply[#reply + 1] = c.reserved
  reply[#reply + 1] = c.added
  reply[#reply + 1] = c.called and 1 or 0
end
for _, want in ipairs(wants) do
  reply[#reply + 1] = want[1]
  reply[#reply + 1] = want[2]
end
return reply

"""Usage + rules -> decisions. No I/O, no clock: `now` is an argument.

rules.py        what is limited: a rule as the hot path needs it
windows.py      when: calendar windows in a rule's own time zone
charge.py       to which counters a settled exchange belongs, by value
reservation.py  how much an exchange must be granted before it may begin, and later
decision.py     what a refusal says, and for how long
headers.py      what every answer says: how much is left
"""

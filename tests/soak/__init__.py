"""Everything goes wrong, on purpose and by seed: the long form is `make soak`, a short one runs with the tests.

chaos.py    workers and Redis are killed, frozen and emptied, networks cut, clients leave: four books side by side
races.py    quotas under parallel load; outages; how soon all is well again
"""

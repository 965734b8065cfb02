"""The configuration: YAML in, one frozen `Config` out, or every fault at once with its line and column.

    load.py      the only entrance: file -> Config, or faults
    schema.py    what may be written (pydantic), and with which words the code reads it
    marks.py     YAML text -> plain data, and where each value stands
    faults.py    one fault: file, line, column, path, message
    validate.py  plain data -> Config; goes on after a fault, so that nobody fixes them one by one
    checks.py    what one entry cannot know: names that must exist, rules that contradict each other
    units.py     rules that would go on with a counter of another unit
    coverage.py  which configured models a rule or a key speaks of
    values.py    human numbers, sizes, durations, `${VAR}`
    urls.py      addresses, base URLs, store URLs, path prefixes
    secrets.py   digests of keys, and secrets from the environment or from files
    lookup.py    the hot path: secret -> key, model name -> upstream

Nothing here reads the clock or the process' environment: both come in by argument. Relative paths in
the YAML are relative to the directory of the YAML file; relative paths on the command line, as
everywhere, to the current directory.
"""

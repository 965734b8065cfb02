"""The admin listener: health, metrics, records, usage. Served by the parent process, beside the traffic."""

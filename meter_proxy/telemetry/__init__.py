"""What operators see: metrics, records, logs.

in a worker   stats.WorkerStats      what no record tells: refusals, what is in flight, our own overhead
              publish.py             ... written to a small file, four times a second
in the parent records.RecordFeed     follows the journals: every figure of an admitted exchange comes from its record
              metrics.Metrics        every Prometheus family, in one place
              quota_gauges.py, key_info.py   those that follow the configuration
              exposition.py          the text format
logs.py       log lines, for people and for machines
"""

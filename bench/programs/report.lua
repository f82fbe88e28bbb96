-- wrk calls this at its end: the figures as one line of JSON. Latencies are in microseconds.
function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '\n{"requests": %d, "duration": %d, "errors": %d, "mean": %d, "p50": %d, "p99": %d, "p99.9": %d}\n',
      summary.requests, summary.duration,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout,
      latency.mean, latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end

"""Observation and control of a running node: metrics, log, status, control socket.

The only part that knows Prometheus.
"""

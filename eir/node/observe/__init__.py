"""Observation and control of a running node: metrics, log, status, control socket.

The only package that imports the Prometheus library.
"""

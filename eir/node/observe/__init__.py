"""Observation and control of a running node: metrics, log, status and control socket.

The only package that imports the Prometheus library.
"""

"""How a running node is seen and steered: metrics, log, status, control socket. The only part that knows Prometheus."""

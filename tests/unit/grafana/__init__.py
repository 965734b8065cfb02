"""The dashboards, and the rules of Prometheus."""

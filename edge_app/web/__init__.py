"""The station's page: a web server in a thread of its own, and what it serves."""

from __future__ import annotations

from edge_app.web.app import WebServer as WebServer

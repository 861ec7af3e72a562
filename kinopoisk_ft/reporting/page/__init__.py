"""Render the report as one HTML page that loads nothing."""

"""Module + packed weights -> a file another runtime loads, verified."""

"""Sources of releases: the drop folder, pulls from a publisher's folder, and acknowledgements to the publisher.

Checks do not use this code.
"""

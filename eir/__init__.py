"""Equipment Identity Register: ME-Identity-Check over Diameter S13, answered from signed lists."""

__version__ = "0.1.0"
